"""How is a file of records written, and by which process?

A file's report is written after the file: a file without a report is not finished, and
is written anew when the run goes on.
"""

import concurrent.futures
import functools
import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading

from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.imagenet import reencode
from imagepiece_jax.errors import RunError

REPORTS = "reports"  # the folder of them, beside the files
GO_ON = "what is finished is kept, and the same command goes on from there"


def finished(work, names):
    """Reports of files in the folder `work` that need not be written, by name.

    A file that had to leave images out counts as missing: they may have been mended.
    """
    paths = {name: work / REPORTS / f"{name}.json" for name in names}
    reports = {
        name: json.loads(path.read_text("utf-8"))
        for name, path in paths.items()
        if path.exists()
    }
    return {name: report for name, report in reports.items() if not report["damaged"]}


def remove_reports(work):
    """They are of no use to a complete set."""
    shutil.rmtree(work / REPORTS)


def run(work, wanted, short_side, workers):
    """Write the files {name: [Entry]}; yields (name, report) as they are finished.

    A report says how many images a file holds, their bytes, how many are reencoded
    and which are damaged, as pairs of name and reason. Raises RunError where a file
    cannot be read or written, or a process dies; no process is left behind.
    """
    (work / REPORTS).mkdir(exist_ok=True)
    jobs = [(work, name, entries, short_side) for name, entries in wanted.items()]
    yield from spread(_write, jobs, workers)


def spread(function, jobs, workers):
    """function(*job) for each of `jobs`, by so many processes, as they are finished.

    With 0 processes this one does it. RunError where a process dies; none is left
    behind.
    """
    if workers == 0:
        yield from itertools.starmap(function, jobs)
        return
    # A forked process would inherit the locks of this one's threads.
    context = multiprocessing.get_context("spawn")
    before = multiprocessing.active_children()
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker)
    try:
        pending = [pool.submit(function, *job) for job in jobs]
        for future in concurrent.futures.as_completed(pending):
            yield future.result()
    except concurrent.futures.BrokenExecutor as error:
        raise RunError(
            f"a worker process has died, perhaps of too little memory: {GO_ON}, with "
            "fewer --processes"
        ) from error
    finally:
        ours = set(multiprocessing.active_children()) - set(before)
        pool.shutdown(wait=False, cancel_futures=True)
        for process in ours:
            process.terminate()
            process.join()


def _start_worker():
    """Ctrl-C is for the parent to handle; SIGTERM is how it ends a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """It may end in any way, by SIGKILL too."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write(work, name, entries, short_side):
    """One file and, last, its report; (name, report)."""
    records, damaged, reencoded = {}, {}, 0
    for position, data in _in_order_of_place(entries):
        entry = entries[position]
        try:
            stored = reencode.stored(data, entry.name, short_side)
        except UnreadableImage as error:
            damaged[position] = (error.name, error.reason)
            continue
        reencoded += stored is not data
        records[position] = _serialised(stored, entry)
    report = {
        "images": len(records),
        "bytes": sum(map(len, records.values())),
        "reencoded": reencoded,
        "damaged": _sorted(damaged),
    }
    try:
        _write_records(work / name, _sorted(records))
        write_json(work / REPORTS / f"{name}.json", report)
    except (OSError, RuntimeError) as error:  # array_record raises the second
        reason = " ".join(str(error).split())
        raise RunError(f"{work} cannot be written ({reason}): {GO_ON}") from error
    return name, report


def _in_order_of_place(entries):
    """(position in `entries`, bytes) of each, ordered by where they lie on the disk."""
    order = sorted(range(len(entries)), key=lambda i: entries[i][2:])
    for path, positions in itertools.groupby(order, key=lambda i: entries[i].file):
        try:
            with open(path, "rb") as file:
                for position in positions:
                    file.seek(entries[position].start)
                    yield position, file.read(entries[position].size)
        except OSError as error:
            raise RunError(
                f"{path} cannot be read ({error.strerror}): {GO_ON}"
            ) from error


def _sorted(by_position):
    return [by_position[position] for position in sorted(by_position)]


def _write_records(path, records):
    from array_record.python import array_record_module

    # TFDS's options: groups of one, so that a record is read without its neighbours.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def _serialised(data, entry):
    """A record as TFDS serialises it, but with its fields in one order always."""
    features, serializer = _format()
    example = {"image": io.BytesIO(data), "label": entry.label, "file_name": entry.name}
    message = serializer.get_tf_example(features.encode_example(example))
    return message.SerializeToString(deterministic=True)


@functools.cache
def _format():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = tfds.builder("imagenet2012", data_dir=os.devnull).info.features
    return features, ExampleSerializer(features.get_serialized_info())


def write_json(path, content):
    """Whole or not at all."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(content), "utf-8")
    os.replace(beside, path)
