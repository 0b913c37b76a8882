// What do XLA's calls have in common, on CPU and GPU? From buffers and attributes to a
// Problem and pointers, with every shape checked.
#ifndef IMAGEPIECE_CALL_H_
#define IMAGEPIECE_CALL_H_

#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>

#include "problem.h"
#include "xla/ffi/api/ffi.h"

namespace imagepiece {

namespace ffi = xla::ffi;

// All images of a call, before their type is known.
struct Call {
  int64_t batch;
  Rule rule;
  bool half;  // bfloat16, else float32
  Problem problem;
  const void* query;  // [B, N, heads, d]
  const void* key;
  const void* x;
  const float* size;
  void* x_out;
  float* size_out;
  int32_t* dest;

  template <class T>
  IMAGEPIECE_BOTH Image<T> image(int64_t index) const {
    const Problem& p = problem;
    const int64_t keys = index * p.tokens * p.heads * p.head_width;
    const int64_t rows = p.prefix + p.n_out;
    return Image<T>{
        static_cast<const T*>(query) + keys,
        static_cast<const T*>(key) + keys,
        static_cast<const T*>(x) + index * p.tokens * p.width,
        size + index * p.tokens,
        static_cast<T*>(x_out) + index * rows * p.width,
        size_out + index * rows,
        dest + index * p.image_tokens(),
    };
  }
};

template <Rule rule>
using RuleOf = std::integral_constant<Rule, rule>;

// run(RuleOf<rule>(), T()) for the call's rule and type.
template <class Run>
auto dispatch(const Call& call, Run run) {
  auto typed = [&](auto type) {
    switch (call.rule) {
      case Rule::kPrune:
        return run(RuleOf<Rule::kPrune>(), type);
      case Rule::kRetokenize:
        return run(RuleOf<Rule::kRetokenize>(), type);
      default:
        return run(RuleOf<Rule::kBipartite>(), type);
    }
  };
  return call.half ? typed(BFloat16()) : typed(float());
}

// The signature of both platforms' handlers. `Context` is what one needs of XLA: a pool
// of threads or a stream. Bipartite matching gets the keys as its query, unread.
template <class Context>
auto signature() {
  return ffi::Ffi::Bind()
      .Ctx<Context>()
      .template Arg<ffi::AnyBuffer>()          // query
      .template Arg<ffi::AnyBuffer>()          // key
      .template Arg<ffi::AnyBuffer>()          // x
      .template Arg<ffi::Buffer<ffi::F32>>()   // size
      .template Ret<ffi::AnyBuffer>()          // x_out
      .template Ret<ffi::Buffer<ffi::F32>>()   // size_out
      .template Ret<ffi::Buffer<ffi::S32>>()   // dest
      .template Attr<int64_t>("rule")
      .template Attr<int64_t>("num_prefix")
      .template Attr<int64_t>("candidates")
      .template Attr<int64_t>("parity")
      .template Attr<bool>("ascending")
      .template Attr<bool>("by_size")
      .template Attr<bool>("prop_attn");
}

// Fills `call` from what a handler got, or says what is wrong with it.
inline ffi::Error read_call(ffi::AnyBuffer query, ffi::AnyBuffer key, ffi::AnyBuffer x,
                            ffi::Buffer<ffi::F32> size,
                            ffi::Result<ffi::AnyBuffer> x_out,
                            ffi::Result<ffi::Buffer<ffi::F32>> size_out,
                            ffi::Result<ffi::Buffer<ffi::S32>> dest, int64_t rule,
                            int64_t prefix, int64_t candidates, int64_t parity,
                            bool ascending, bool by_size, bool prop_attn, Call* call) {
  const auto wrong = [](const char* what) {
    return ffi::Error::InvalidArgument(std::string("token reduction: ") + what);
  };
  const auto keys = key.dimensions(), in = x.dimensions(), out = x_out->dimensions();
  const auto type = x.element_type();
  if (type != ffi::F32 && type != ffi::BF16) return wrong("x is float32 or bfloat16");
  if (query.element_type() != type || key.element_type() != type ||
      x_out->element_type() != type) {
    return wrong("query, key and x have one type");
  }
  if (keys.size() != 4 || in.size() != 3 || out.size() != 3 ||
      query.element_count() != key.element_count()) {
    return wrong("query and key have four dimensions, the same, x has three");
  }
  const int64_t n = in[1] - prefix;
  if (keys[0] != in[0] || keys[1] != in[1] || out[0] != in[0] || out[2] != in[2] ||
      static_cast<int64_t>(size.element_count()) != in[0] * in[1] ||
      static_cast<int64_t>(size_out->element_count()) != out[0] * out[1] ||
      static_cast<int64_t>(dest->element_count()) != in[0] * n) {
    return wrong("arrays differ in batch, tokens or width");
  }
  if (keys[3] % kChunk || keys[3] > kWidestHead || in[2] % kChunk) {
    return wrong("widths are multiples of 8, a head's at most 128");
  }
  if (out[1] < prefix || out[1] >= in[1] || candidates > n) {
    return wrong("fewer tokens come out than go in");
  }
  call->batch = in[0];
  call->rule = static_cast<Rule>(rule);
  call->half = type == ffi::BF16;
  Problem& p = call->problem;
  p.tokens = in[1];
  p.prefix = prefix;
  p.heads = keys[2];
  p.head_width = keys[3];
  p.width = in[2];
  p.n_out = out[1] - prefix;
  p.candidates = candidates;
  p.parity = parity;
  p.scale = 1.0 / std::sqrt(static_cast<double>(keys[3]));
  p.ascending = ascending;
  p.by_size = by_size;
  p.prop_attn = prop_attn;
  call->query = query.untyped_data();
  call->key = key.untyped_data();
  call->x = x.untyped_data();
  call->size = size.typed_data();
  call->x_out = x_out->untyped_data();
  call->size_out = size_out->typed_data();
  call->dest = dest->typed_data();
  return ffi::Error::Success();
}

}  // namespace imagepiece

#endif  // IMAGEPIECE_CALL_H_
