// What do the keys say? The class token's attention and unit mean keys, in one reading.
#ifndef IMAGEPIECE_KEYS_H_
#define IMAGEPIECE_KEYS_H_

#include <math.h>

#include "problem.h"

namespace imagepiece {

IMAGEPIECE_HERE float last_if_nan(float score) {
  return score == score ? score : -INFINITY;
}

// Sum of eight numbers, by halves: the error of a sum grows with its depth.
IMAGEPIECE_HERE float sum_chunk(float (&v)[kChunk]) {
  IMAGEPIECE_UNROLL
  for (int half = kChunk / 2; half; half /= 2) {
    IMAGEPIECE_UNROLL
    for (int j = 0; j < half; ++j) v[j] += v[j + half];
  }
  return v[0];
}

// Where the features of an image token lie: side A in front in bipartite matching, so
// that threads that are neighbors read rows that are.
template <Rule rule>
IMAGEPIECE_HERE int metric_row(const Problem& p, int token) {
  if (rule != Rule::kBipartite) return token;
  return token / 2 + (token % 2 == p.parity ? 0 : p.rows());
}

// The chunks that a lane has of one head's key.
template <class Team, class T>
struct Piece {
  Chunk<T> chunk[Team::kOwn];

  IMAGEPIECE_HERE void load(const Team& team, const T* key, int chunks) {
    IMAGEPIECE_UNROLL
    for (int own = 0; own < Team::kOwn; ++own) {
      const int at = team.lane() + own * Team::kLanes;
      if (at < chunks) chunk[own] = reinterpret_cast<const Chunk<T>*>(key)[at];
    }
  }

  // q.k of the whole head, for every lane of the group.
  IMAGEPIECE_HERE float dot(const Team& team, const float* query, int chunks) const {
    float products[kChunk] = {};
    IMAGEPIECE_UNROLL
    for (int own = 0; own < Team::kOwn; ++own) {
      const int at = team.lane() + own * Team::kLanes;
      if (at >= chunks) break;
      const auto q = reinterpret_cast<const Chunk<float>*>(query)[at];
      IMAGEPIECE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        products[j] += to_float(chunk[own].v[j]) * q.v[j];
      }
    }
    return team.sum(sum_chunk(products));
  }
};

// The sum over heads of the chunks that a lane has.
template <class Team>
struct KeySum {
  Chunk<float> chunk[Team::kOwn] = {};

  template <class T>
  IMAGEPIECE_HERE void add(const Team& team, const Piece<Team, T>& piece, int chunks) {
    IMAGEPIECE_UNROLL
    for (int own = 0; own < Team::kOwn; ++own) {
      if (team.lane() + own * Team::kLanes >= chunks) break;
      IMAGEPIECE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        chunk[own].v[j] += to_float(piece.chunk[own].v[j]);
      }
    }
  }

  // The mean over heads, brought to length 1, to `out`.
  IMAGEPIECE_HERE void store(const Team& team, int heads, int chunks, float* out) {
    float squares[kChunk] = {};
    IMAGEPIECE_UNROLL
    for (int own = 0; own < Team::kOwn; ++own) {
      if (team.lane() + own * Team::kLanes >= chunks) break;
      IMAGEPIECE_UNROLL
      for (int j = 0; j < kChunk; ++j) {
        chunk[own].v[j] /= heads;
        squares[j] += chunk[own].v[j] * chunk[own].v[j];
      }
    }
    const float unit = 1.0f / sqrtf(team.sum(sum_chunk(squares)) + 1e-6f);
    IMAGEPIECE_UNROLL
    for (int own = 0; own < Team::kOwn; ++own) {
      const int at = team.lane() + own * Team::kLanes;
      if (at >= chunks) break;
      IMAGEPIECE_UNROLL
      for (int j = 0; j < kChunk; ++j) chunk[own].v[j] *= unit;
      reinterpret_cast<Chunk<float>*>(out)[at] = chunk[own];
    }
  }
};

// Reads the keys -> s.logits (where the rule ranks by attention), s.metric (where it
// compares). A group takes a token, head by head.
template <Rule rule, class Team, class T>
IMAGEPIECE_HERE void read_keys(const Team& team, const Problem& p,
                               const Image<T>& image, const Scratch& s) {
  constexpr bool scores = rule != Rule::kBipartite, metric = rule != Rule::kPrune;
  constexpr int kAhead = Team::kAhead;
  const int chunks = p.head_width / kChunk, row = p.heads * p.head_width;
  if (scores) {
    for (int i = team.thread(); i < row; i += team.threads()) {
      s.query[i] = to_float(image.query[i]);
    }
    team.sync();
  }
  const int begin = scores ? 0 : p.prefix;
  for (int i = begin + team.group(); i < p.tokens; i += team.groups()) {
    const T* key = image.key + static_cast<size_t>(i) * row;
    const float bias = scores && p.prop_attn ? logf(image.size[i]) : 0.0f;
    KeySum<Team> sum;
    IMAGEPIECE_ROLLED
    for (int start = 0; start < p.heads; start += kAhead) {
      Piece<Team, T> piece[kAhead];
      IMAGEPIECE_UNROLL
      for (int ahead = 0; ahead < kAhead; ++ahead) {
        const int h = start + ahead;
        if (h < p.heads) piece[ahead].load(team, key + h * p.head_width, chunks);
      }
      IMAGEPIECE_UNROLL
      for (int ahead = 0; ahead < kAhead; ++ahead) {
        const int h = start + ahead;
        if (h >= p.heads) break;
        if (metric) sum.add(team, piece[ahead], chunks);
        if (!scores) continue;
        const float dot = piece[ahead].dot(team, s.query + h * p.head_width, chunks);
        if (team.lane() == 0) s.logits[h * p.tokens + i] = dot * p.scale + bias;
      }
    }
    if (metric && i >= p.prefix) {
      const int at = metric_row<rule>(p, i - p.prefix);
      sum.store(team, p.heads, chunks, s.metric + at * p.stride());
    }
  }
  team.sync();
}

// Softmax over all tokens, mean over heads, prefix dropped: s.logits -> s.score.
template <class Team>
IMAGEPIECE_HERE void score_tokens(const Team& team, const Problem& p,
                                  const Scratch& s) {
  for (int h = team.group(); h < p.heads; h += team.groups()) {
    float* logits = s.logits + h * p.tokens;
    float top = -INFINITY, total = 0.0f;
    for (int i = team.lane(); i < p.tokens; i += Team::kLanes) {
      top = fmaxf(top, logits[i]);
    }
    top = team.max(top);
    for (int i = team.lane(); i < p.tokens; i += Team::kLanes) {
      logits[i] = expf(logits[i] - top);
      total += logits[i];
    }
    total = team.sum(total);
    if (team.lane() == 0) s.total[h] = total;
  }
  team.sync();
  for (int i = team.thread(); i < p.image_tokens(); i += team.threads()) {
    float score = 0.0f;
    for (int h = 0; h < p.heads; ++h) {
      score += s.logits[h * p.tokens + p.prefix + i] / s.total[h];
    }
    s.score[i] = last_if_nan(score / p.heads);
  }
  team.sync();
}

}  // namespace imagepiece

#endif  // IMAGEPIECE_KEYS_H_
