// Does a team of many threads, in groups of eight lanes, decide what one thread does?
//
// The threads stand for a GPU's thread block: run under -fsanitize=thread, a barrier
// that is missing in the kernel's code is found without a GPU. Exit status 0: all equal.
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "reduce.h"

namespace imagepiece {
namespace {

constexpr int kThreads = 16;

struct Meeting {  // all threads of a team
  std::mutex mutex;
  std::condition_variable all_here;
  int waiting = 0;
  long round = 0;

  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    const long mine = round;
    if (++waiting == kThreads) {
      waiting = 0;
      ++round;
      all_here.notify_all();
    } else {
      all_here.wait(lock, [&] { return round != mine; });
    }
  }
};

struct Threads {
  static constexpr int kLanes = 8, kOwn = 2, kAhead = 3, kRows = 2, kCols = 3;
  struct alignas(16) Step {
    float v[4];
  };
  using Sum = float;
  static void add(Sum& sum, const Step& a, const Step& b) {
    for (int j = 0; j < 4; ++j) sum += a.v[j] * b.v[j];
  }
  static float total(Sum sum) { return sum; }

  // Values that lanes show each other, each with the number of the exchange. Relaxed:
  // as with a GPU's shuffles, memory is not ordered by it. Two buffers in turn, because
  // a fast lane may be one exchange ahead.
  struct Shown {
    std::atomic<uint64_t> slot[2][kThreads] = {};
  };

  int index;
  Meeting* meeting;
  Shown* shown;
  mutable uint32_t exchanges = 0;

  int thread() const { return index; }
  int threads() const { return kThreads; }
  int lane() const { return index % kLanes; }
  int group() const { return index / kLanes; }
  int groups() const { return kThreads / kLanes; }
  void sync() const { meeting->wait(); }
  void prefetch(const void*) const {}

  template <class V>
  V exchange(V value, int with) const {
    ++exchanges;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    auto& slots = shown->slot[exchanges % 2];
    slots[index].store(uint64_t{exchanges} << 32 | bits, std::memory_order_relaxed);
    uint64_t seen = 0, other = 0;
    for (int l = 0; l < kLanes; ++l) {
      const int at = group() * kLanes + l;
      while ((seen = slots[at].load(std::memory_order_relaxed)) >> 32 != exchanges) {
        std::this_thread::yield();
      }
      if (at == with) other = seen;
    }
    bits = static_cast<uint32_t>(other);
    std::memcpy(&value, &bits, 4);
    return value;
  }

  template <class V>
  V sum(V value) const {
    for (int far = kLanes / 2; far; far /= 2) value += exchange(value, index ^ far);
    return value;
  }

  float max(float value) const {
    for (int far = kLanes / 2; far; far /= 2) {
      value = fmaxf(value, exchange(value, index ^ far));
    }
    return value;
  }
};

template <class T>
struct Output {
  std::vector<Chunk<T>> x;
  std::vector<float> size;
  std::vector<int32_t> dest;
};

// Scratch memory starts as garbage, another for each team.
template <Rule rule, class Team, class T>
std::vector<Chunk<float>> garbage(const Problem& p, int threads, float value) {
  const size_t chunks = layout<rule, Team>(p, threads).bytes / sizeof(Chunk<float>) + 1;
  std::vector<Chunk<float>> memory(chunks);
  for (auto& chunk : memory) {
    for (auto& v : chunk.v) v = value;
  }
  return memory;
}

template <Rule rule, class T>
bool same(const Problem& p, unsigned seed) {
  std::mt19937 random(seed);
  const int row = p.heads * p.head_width;
  auto values = [&](int count) {
    std::vector<Chunk<T>> all(count / kChunk);
    for (auto& chunk : all) {  // small integers: sums are exact in any order
      for (auto& v : chunk.v) from_float(int(random() % 7) - 3.0f, &v);
    }
    return all;
  };
  const auto query = values(row), key = values(p.tokens * row);
  const auto x = values(p.tokens * p.width);
  std::vector<float> size(p.tokens);
  for (auto& v : size) v = 1 + random() % 3;
  Output<T> outputs[2];
  Image<T> images[2];
  for (int i = 0; i < 2; ++i) {
    const int rows = p.prefix + p.n_out;
    auto& out = outputs[i];
    out.x.resize(rows * p.width / kChunk);
    out.size.resize(rows);
    out.dest.resize(p.image_tokens());
    images[i] = {query[0].v,  key[0].v,        x[0].v,         size.data(),
                 out.x[0].v, out.size.data(), out.dest.data()};
  }
  auto alone = garbage<rule, Serial, T>(p, 1, NAN);
  reduce<rule>(Serial(), p, images[0],
               layout<rule, Serial>(p, 1).at(reinterpret_cast<char*>(alone.data())));
  auto shared = garbage<rule, Threads, T>(p, kThreads, -1e30f);
  const auto scratch =
      layout<rule, Threads>(p, kThreads).at(reinterpret_cast<char*>(shared.data()));
  Meeting meeting;
  Threads::Shown shown;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      reduce<rule>(Threads{i, &meeting, &shown}, p, images[1], scratch);
    });
  }
  for (auto& thread : threads) thread.join();
  bool equal = outputs[0].dest == outputs[1].dest && outputs[0].size == outputs[1].size;
  for (size_t i = 0; i < outputs[0].x.size(); ++i) {
    for (int j = 0; j < kChunk; ++j) {
      equal &= to_float(outputs[0].x[i].v[j]) == to_float(outputs[1].x[i].v[j]);
    }
  }
  if (!equal) std::printf("rule %d, seed %u: teams differ\n", int(rule), seed);
  return equal;
}

Problem problem(int prefix, int n_out, int candidates, int parity, int head_width) {
  return Problem{19 + prefix, prefix, 4, head_width, 24, n_out, candidates, parity,
                 0.125f, false, true, true};
}

}  // namespace
}  // namespace imagepiece

int main() {
  using namespace imagepiece;
  bool equal = true;
  for (unsigned seed = 0; seed < 2; ++seed) {
    equal &= same<Rule::kPrune, float>(problem(1, 11, 0, 0, 8), seed);
    equal &= same<Rule::kRetokenize, BFloat16>(problem(1, 15, 9, 1, 80), seed);
    equal &= same<Rule::kRetokenize, float>(problem(2, 13, 12, 0, 32), seed);
    equal &= same<Rule::kBipartite, BFloat16>(problem(1, 12, 19, 1, 16), seed);
    equal &= same<Rule::kBipartite, float>(problem(0, 14, 19, 0, 64), seed);
  }
  return equal ? 0 : 1;
}
