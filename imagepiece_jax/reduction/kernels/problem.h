// What is to be done, and where does it lie? Shapes, options, pointers, scratch memory.
#ifndef IMAGEPIECE_PROBLEM_H_
#define IMAGEPIECE_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "team.h"

namespace imagepiece {

constexpr int kDropped = -1;  // `dest` of a token that is in no slot
constexpr int kNone = -1;     // no token, no column
constexpr int kNobody = -2;   // whom a token joins that is dropped

enum class Rule { kPrune = 0, kRetokenize = 1, kBipartite = 2 };

struct BFloat16 {
  uint16_t bits;
};

IMAGEPIECE_BOTH float to_float(float value) { return value; }

IMAGEPIECE_BOTH float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

IMAGEPIECE_BOTH void from_float(float value, float* out) { *out = value; }

IMAGEPIECE_BOTH void from_float(float value, BFloat16* out) {  // ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

template <class T>
struct alignas(16) Chunk {
  T v[kChunk];
};

// Shapes and options: the same for all images of a call.
struct Problem {
  int tokens;      // N, prefix included
  int prefix;      // class and distillation token; they stay in front
  int heads;
  int head_width;  // d, a multiple of 8
  int width;       // D, a multiple of 8
  int n_out;       // image tokens out
  int candidates;  // split between the two sides; all image tokens in bipartite matching
  int parity;      // which of the first two goes to side A, that which leaves
  float scale;     // d^-0.5
  bool ascending;  // the least attended candidate comes first
  bool by_size;    // a merged token is the mean over patches, else over tokens
  bool prop_attn;  // log(size) on the logits

  IMAGEPIECE_BOTH int image_tokens() const { return tokens - prefix; }
  IMAGEPIECE_BOTH int leaving() const { return image_tokens() - n_out; }
  IMAGEPIECE_BOTH int rows() const { return (candidates - parity + 1) / 2; }  // side A
  IMAGEPIECE_BOTH int cols() const { return candidates - rows(); }            // side B
  // Four more numbers a row put rows that are read together into different banks.
  IMAGEPIECE_BOTH int stride() const { return head_width + 4; }
};

template <class T>
struct Image {
  const T* query;     // [heads, d] of the class token; null in bipartite matching
  const T* key;       // [N, heads, d]
  const T* x;         // [N, D]
  const float* size;  // [N]
  T* x_out;           // [prefix + n_out, D]
  float* size_out;    // [prefix + n_out]
  int32_t* dest;      // [n]
};

// Memory that a team shares while it works on an image. n image tokens, numbered in
// spatial order.
struct Scratch {
  float* metric;   // [n, d + 4] keys, mean over heads, of length 1
  float* query;    // [heads, d]
  float* logits;   // [heads, N], then their exponentials
  float* total;    // [heads] sums of these
  float* best;     // [rows, strips] highest similarity; in the place of the query
  int* best_col;   // [rows, strips] and whose it is
  float* score;    // [n] class attention, then highest similarity of each row
  int* line;       // [n] candidates in the order in which they are split
  int* partner;    // [n] most similar token of side B of each row, by its place there
  int* leaver;     // [n] tokens that leave their place
  int* joins;      // [n] whom a token joins; kNone: it stays, kNobody: it is dropped
  int* dest;       // [n] slots
  int* next;       // [n] next token of the same slot, or kNone
  int* first;      // [n] first token of each slot
};

// Where these begin, in bytes.
struct Layout {
  int query, logits, total, best, best_col, score;
  int list;  // bytes of a list of n numbers; seven of them follow `score`
  int bytes;

  IMAGEPIECE_BOTH Scratch at(char* memory) const {
    auto floats = [&](int offset) { return reinterpret_cast<float*>(memory + offset); };
    auto ints = [&](int offset) { return reinterpret_cast<int*>(memory + offset); };
    auto lists = [&](int i) { return ints(score + i * list); };
    return Scratch{floats(0),    floats(query), floats(logits), floats(total),
                   floats(best), ints(best_col), floats(score), lists(1),
                   lists(2),     lists(3),       lists(4),      lists(5),
                   lists(6),     lists(7)};
  }
};

// Threads share the columns of a tile of rows: so many strips of them there are.
template <class Team>
IMAGEPIECE_BOTH int strips(const Problem& p, int threads) {
  const int row_tiles = (p.rows() + Team::kRows - 1) / Team::kRows;
  const int col_tiles = (p.cols() + Team::kCols - 1) / Team::kCols;
  const int wanted = row_tiles ? threads / row_tiles : 1;
  return wanted < 1 ? 1 : wanted < col_tiles ? wanted : col_tiles;
}

// The layout for a team of so many threads.
template <Rule rule, class Team>
Layout layout(const Problem& p, int threads) {
  auto bytes = [](int count) { return (count * 4 + 15) / 16 * 16; };
  const int n = p.image_tokens(), heads = rule == Rule::kBipartite ? 0 : p.heads;
  const int parts = rule == Rule::kPrune ? 0 : p.rows() * strips<Team>(p, threads);
  Layout l;
  l.query = bytes(rule == Rule::kPrune ? 0 : n * p.stride());
  l.logits = l.query + bytes(heads * p.head_width);
  l.total = l.logits + bytes(heads * p.tokens);
  l.best = l.query;
  l.best_col = l.best + bytes(parts);
  const int scored = l.total + bytes(heads), compared = l.best_col + bytes(parts);
  l.score = scored > compared ? scored : compared;
  l.list = bytes(n);
  l.bytes = l.score + 8 * l.list;
  return l;
}

}  // namespace imagepiece

#endif  // IMAGEPIECE_PROBLEM_H_
