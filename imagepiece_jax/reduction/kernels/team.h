// Who does the work on one image? A team of threads, in groups of lanes.
//
// The code in reduce.h is written for any team; a team is one thread (here), a thread
// block of a GPU (reduce_cuda.cu), or anything else that has these members:
//   kLanes        lanes in a group: a group takes a token or a row, its lanes the
//                 chunks of it, or every kLanes-th element of a list
//   kOwn          chunks of a head that one lane can hold
//   kAhead        heads whose keys are loaded before the first is used
//   kRows, kCols  pairs that one thread compares at a time
//   Step, Sum     elements of a row that it reads at once, and a sum of products of
//                 two: add(sum, step, step), total(sum)
//   thread() threads() lane() group() groups()
//   sum(v) max(v)  over the lanes of a group; every lane gets it, all must call
//   sync()         all threads of the team; what one wrote before it all see after
//   prefetch(p)    the 128 bytes at p will be read
#ifndef IMAGEPIECE_TEAM_H_
#define IMAGEPIECE_TEAM_H_

#ifdef __CUDACC__
#define IMAGEPIECE_HERE __device__ __forceinline__
#define IMAGEPIECE_BOTH __host__ __device__ __forceinline__
#define IMAGEPIECE_UNROLL _Pragma("unroll")
#define IMAGEPIECE_ROLLED _Pragma("unroll 1")  // else it takes too many registers
#else
#define IMAGEPIECE_HERE inline
#define IMAGEPIECE_BOTH inline
#define IMAGEPIECE_UNROLL
#define IMAGEPIECE_ROLLED
#endif

namespace imagepiece {

constexpr int kChunk = 8;           // numbers that a lane loads at once
constexpr int kWidestHead = 128;

// One thread, one lane: what a CPU's thread does with an image.
struct Serial {
  static constexpr int kLanes = 1, kOwn = kWidestHead / kChunk, kAhead = 1;
  static constexpr int kRows = 2, kCols = 4;
  typedef float Step __attribute__((vector_size(32), aligned(16), may_alias));
  typedef float Sum __attribute__((vector_size(32)));
  static void add(Sum& sum, const Step& a, const Step& b) { sum += a * b; }
  static float total(const Sum& sum) {
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) +
           ((sum[1] + sum[5]) + (sum[3] + sum[7]));
  }
  int thread() const { return 0; }
  int threads() const { return 1; }
  int lane() const { return 0; }
  int group() const { return 0; }
  int groups() const { return 1; }
  template <class V>
  V sum(V value) const { return value; }
  float max(float value) const { return value; }
  void sync() const {}
  void prefetch(const void*) const {}
};

}  // namespace imagepiece

#endif  // IMAGEPIECE_TEAM_H_
