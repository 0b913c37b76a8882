// The reduction on an NVIDIA GPU: a thread block takes an image. Compute capability 8.0
// and more.
#include <cuda_runtime.h>

#include <string>

#include "call.h"
#include "reduce.h"

namespace imagepiece {
namespace {

constexpr int kThreads = 512, kBlocks = 2;  // that many blocks share a multiprocessor

// Lanes are neighbors in a warp: eight of them read 128 bytes of bfloat16 at once.
template <Rule rule, int own, class T>
struct Block {
  static constexpr int kLanes = 8, kOwn = own, kAhead = sizeof(T) * own == 2 ? 3 : 1;
  // A first ToMe step has 98 x 98 pairs, ImagePiece some 29 x 29: with such tiles most
  // threads have one.
  static constexpr int kRows = 2, kCols = rule == Rule::kBipartite ? 10 : 2;
  struct alignas(16) Step {
    float v[4];
  };
  using Sum = float;
  __device__ static void add(Sum& sum, const Step& a, const Step& b) {
    IMAGEPIECE_UNROLL
    for (int j = 0; j < 4; ++j) sum += a.v[j] * b.v[j];
  }
  __device__ static float total(Sum sum) { return sum; }

  __device__ int thread() const { return threadIdx.x; }
  __device__ int threads() const { return kThreads; }
  __device__ int lane() const { return threadIdx.x % kLanes; }
  __device__ int group() const { return threadIdx.x / kLanes; }
  __device__ int groups() const { return kThreads / kLanes; }

  template <class V>
  __device__ V sum(V value) const {
    for (int far = kLanes / 2; far; far /= 2) {
      value += __shfl_xor_sync(members(), value, far);
    }
    return value;
  }

  __device__ float max(float value) const {
    for (int far = kLanes / 2; far; far /= 2) {
      value = fmaxf(value, __shfl_xor_sync(members(), value, far));
    }
    return value;
  }

  __device__ void sync() const { __syncthreads(); }

  __device__ void prefetch(const void* at) const {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
  }

 private:
  // Groups of a warp part ways, so each shuffles among its own.
  __device__ unsigned members() const {
    return 0xffu << (threadIdx.x % 32 / kLanes * kLanes);
  }
};

template <Rule rule, int own, class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    reduce_images(const Call call, const Layout sizes) {
  extern __shared__ __align__(16) char memory[];
  reduce<rule>(Block<rule, own, T>(), call.problem, call.image<T>(blockIdx.x),
               sizes.at(memory));
}

template <Rule rule, int own, class T>
cudaError_t launch(cudaStream_t stream, const Call& call) {
  const auto kernel = reduce_images<rule, own, T>;
  const Layout sizes = layout<rule, Block<rule, own, T>>(call.problem, kThreads);
  const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
  if (auto error = cudaFuncSetAttribute(kernel, limit, sizes.bytes)) return error;
  kernel<<<call.batch, kThreads, sizes.bytes, stream>>>(call, sizes);
  return cudaGetLastError();
}

// Loads the kernels of a rule on the current device: asking for their attributes does.
template <Rule rule>
cudaError_t load() {
  const void* kernels[] = {
      reinterpret_cast<const void*>(reduce_images<rule, 1, float>),
      reinterpret_cast<const void*>(reduce_images<rule, 2, float>),
      reinterpret_cast<const void*>(reduce_images<rule, 1, BFloat16>),
      reinterpret_cast<const void*>(reduce_images<rule, 2, BFloat16>),
  };
  for (const void* kernel : kernels) {
    cudaFuncAttributes unused;
    if (auto error = cudaFuncGetAttributes(&unused, kernel)) return error;
  }
  return cudaSuccess;
}

template <class... Args>
ffi::Error handle(cudaStream_t stream, Args... args) {
  Call call;
  if (auto error = read_call(args..., &call); error.failure()) return error;
  if (call.batch == 0) return ffi::Error::Success();
  const auto error = dispatch(call, [&](auto rule, auto type) {
    const bool narrow = call.problem.head_width <= 8 * kChunk;
    return narrow ? launch<rule, 1, decltype(type)>(stream, call)
                  : launch<rule, 2, decltype(type)>(stream, call);
  });
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("token reduction: ") +
                              cudaGetErrorString(error));
}

}  // namespace
}  // namespace imagepiece

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ImagepieceReduce, [](auto... args) { return imagepiece::handle(args...); },
    imagepiece::signature<xla::ffi::PlatformStream<cudaStream_t>>(),
    {xla::ffi::Traits::kCmdBufferCompatible});

// Shared memory that an image takes, in bytes.
extern "C" int64_t imagepiece_shared_bytes(int64_t rule, int64_t tokens, int64_t prefix,
                                           int64_t heads, int64_t head_width,
                                           int64_t candidates, int64_t parity) {
  imagepiece::Call call = {};
  call.rule = static_cast<imagepiece::Rule>(rule);
  call.problem.tokens = tokens;
  call.problem.prefix = prefix;
  call.problem.heads = heads;
  call.problem.head_width = head_width;
  call.problem.candidates = candidates;
  call.problem.parity = parity;
  return imagepiece::dispatch(call, [&](auto rule, auto type) {
    using Team = imagepiece::Block<rule, 1, decltype(type)>;
    return imagepiece::layout<rule, Team>(call.problem, imagepiece::kThreads).bytes;
  });
}

// Loads all kernels on a device; what keeps them from running there, null if nothing.
// CUDA would load each at its first launch: while a command buffer is recorded, which
// cannot be done then, or while another device waits for this one in a collective.
extern "C" const char* imagepiece_load(int device) {
  using imagepiece::Rule;
  int before = 0;
  auto error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error == cudaSuccess) error = imagepiece::load<Rule::kPrune>();
  if (error == cudaSuccess) error = imagepiece::load<Rule::kRetokenize>();
  if (error == cudaSuccess) error = imagepiece::load<Rule::kBipartite>();
  cudaSetDevice(before);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
