// The reduction on a CPU: a thread takes an image, the threads are XLA's.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "call.h"
#include "reduce.h"

namespace imagepiece {
namespace {

// Images that are taken one by one. Tasks of the pool may start after all is done, so
// what they touch outlives the call; nobody waits for a task that has not begun.
class Work {
 public:
  explicit Work(const Call& call) : call_(call) {}

  void run() {
    if (taken_ >= call_.batch) return;
    dispatch(call_, [this](auto rule, auto type) {
      run_typed<rule, decltype(type)>();
    });
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [this] { return done_ == call_.batch; });
  }

 private:
  template <Rule rule, class T>
  void run_typed() {
    const Problem& p = call_.problem;
    const Layout sizes = layout<rule, Serial>(p, 1);
    std::vector<Chunk<float>> memory(sizes.bytes / sizeof(Chunk<float>) + 1);
    const Scratch scratch = sizes.at(reinterpret_cast<char*>(memory.data()));
    for (int64_t i; (i = taken_++) < call_.batch;) {
      reduce<rule>(Serial(), p, call_.image<T>(i), scratch);
      std::lock_guard<std::mutex> lock(mutex_);
      if (++done_ == call_.batch) all_done_.notify_all();
    }
  }

  const Call call_;
  std::atomic<int64_t> taken_{0};
  int64_t done_ = 0;
  std::mutex mutex_;
  std::condition_variable all_done_;
};

template <class... Args>
ffi::Error handle(ffi::ThreadPool pool, Args... args) {
  Call call;
  if (auto error = read_call(args..., &call); error.failure()) return error;
  auto work = std::make_shared<Work>(call);
  const int64_t threads = std::min<int64_t>(pool.num_threads(), call.batch);
  for (int64_t i = 1; i < threads; ++i) {
    pool.Schedule([work] { work->run(); });
  }
  work->run();
  work->wait();
  return ffi::Error::Success();
}

}  // namespace
}  // namespace imagepiece

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ImagepieceReduce, [](auto... args) { return imagepiece::handle(args...); },
    imagepiece::signature<xla::ffi::ThreadPool>());
