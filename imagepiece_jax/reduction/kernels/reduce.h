// One reduction of one image, from keys to moved tokens, for CPUs and GPUs alike.
//
// Decides what the reducers of reducers.py decide from the same scores. A barrier
// stands at the end of each step that writes what the next one reads.
#ifndef IMAGEPIECE_REDUCE_H_
#define IMAGEPIECE_REDUCE_H_

#include "keys.h"
#include "match.h"
#include "problem.h"

namespace imagepiece {

// The tokens from position n_out on leave, and join nobody -> s.joins, s.leaver.
template <class Team>
IMAGEPIECE_HERE void drop(const Team& team, const Problem& p, const Scratch& s) {
  rank(team, s, p.image_tokens(), [&](int token, int position) {
    const int place = position - p.n_out;
    s.joins[token] = place < 0 ? kNone : kNobody;
    if (place >= 0) s.leaver[place] = token;
  });
}

// The least attended tokens in the order in which they are split -> s.line.
template <class Team>
IMAGEPIECE_HERE void line_up(const Team& team, const Problem& p, const Scratch& s) {
  rank(team, s, p.image_tokens(), [&](int token, int position) {
    const int place = position - (p.image_tokens() - p.candidates);
    if (place >= 0) s.line[p.ascending ? p.candidates - 1 - place : place] = token;
  });
}

// Tokens of side A join their partners, the most similar ones first, as many as are to
// leave -> s.joins, s.leaver.
template <Rule rule, class Team>
IMAGEPIECE_HERE void merge(const Team& team, const Problem& p, const Scratch& s) {
  for (int i = team.thread(); i < p.image_tokens(); i += team.threads()) {
    s.joins[i] = kNone;
  }
  compare<rule>(team, p, s);
  rank(team, s, p.rows(), [&](int row, int position) {
    const int token = split_token<rule>(p, s, true, row);
    if (position < p.leaving()) {
      s.joins[token] = split_token<rule>(p, s, false, s.partner[row]);
      s.leaver[position] = token;
    } else {
      s.dest[token] = position - p.leaving();  // holds without class token, see below
    }
  });
}

// The slot of a token that stays: those before it, without who left. Bipartite matching
// puts side A in front, by falling similarity where there is no class token.
template <Rule rule>
IMAGEPIECE_HERE int slot(const Problem& p, const Scratch& s, int token) {
  int before = token;
  if (rule == Rule::kBipartite) {
    before = token / 2;
    if (token % 2 != p.parity) return p.rows() - p.leaving() + before;
    if (p.prefix == 0) return s.dest[token];
  }
  for (int i = 0; i < p.leaving(); ++i) before -= s.leaver[i] < token;
  return before;
}

// Slots of all tokens -> s.dest; the tokens of each slot by index -> s.first, s.next.
template <Rule rule, class Team>
IMAGEPIECE_HERE void place(const Team& team, const Problem& p, const Scratch& s) {
  const int n = p.image_tokens(), merging = rule == Rule::kPrune ? 0 : p.leaving();
  for (int i = team.thread(); i < n; i += team.threads()) {
    if (s.joins[i] == kNone) s.dest[i] = slot<rule>(p, s, i);
  }
  team.sync();
  for (int i = team.thread(); i < p.leaving(); i += team.threads()) {
    const int token = s.leaver[i];
    s.dest[token] = merging ? s.dest[s.joins[token]] : kDropped;
  }
  team.sync();
  for (int i = team.thread(); i < n; i += team.threads()) {
    if (s.joins[i] == kNobody) continue;
    int next = n;
    bool leads = true;
    auto meet = [&](int other) {
      if (other > i && other < next) next = other;
      if (other < i) leads = false;
    };
    if (s.joins[i] != kNone) meet(s.joins[i]);
    for (int m = 0; m < merging; ++m) {
      if (s.dest[s.leaver[m]] == s.dest[i]) meet(s.leaver[m]);
    }
    s.next[i] = next < n ? next : kNone;
    if (leads) s.first[s.dest[i]] = i;
  }
  team.sync();
}

// A row of x as it is; several loads are on their way before the first is stored.
template <class Team, class T>
IMAGEPIECE_HERE void copy_row(const Team& team, const T* from, T* to, int chunks) {
  constexpr int kAhead = Team::kAhead, kLanes = Team::kLanes;
  const auto* source = reinterpret_cast<const Chunk<T>*>(from);
  auto* target = reinterpret_cast<Chunk<T>*>(to);
  for (int start = team.lane(); start < chunks; start += kAhead * kLanes) {
    Chunk<T> raw[kAhead];
    IMAGEPIECE_UNROLL
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      const int at = start + ahead * kLanes;
      if (at < chunks) raw[ahead] = source[at];
    }
    IMAGEPIECE_UNROLL
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      const int at = start + ahead * kLanes;
      if (at < chunks) target[at] = raw[ahead];
    }
  }
}

// The weighted mean of the tokens of a slot, in float32, by index. Returns their size.
template <class Team, class T>
IMAGEPIECE_HERE float merge_row(const Team& team, const Problem& p,
                                const Image<T>& image, const Scratch& s, int first,
                                T* to) {
  const float* sizes = image.size + p.prefix;
  const T* x = image.x + static_cast<size_t>(p.prefix) * p.width;
  float size = 0.0f, weight = 0.0f;
  for (int i = first; i != kNone; i = s.next[i]) {
    size += sizes[i];
    weight += p.by_size ? sizes[i] : 1.0f;
  }
  for (int at = team.lane(); at < p.width / kChunk; at += Team::kLanes) {
    Chunk<float> sum = {};
    for (int i = first; i != kNone; i = s.next[i]) {
      const float share = (p.by_size ? sizes[i] : 1.0f) / weight;
      const auto raw =
          reinterpret_cast<const Chunk<T>*>(x + static_cast<size_t>(i) * p.width)[at];
      IMAGEPIECE_UNROLL
      for (int j = 0; j < kChunk; ++j) sum.v[j] += share * to_float(raw.v[j]);
    }
    Chunk<T> out;
    IMAGEPIECE_UNROLL
    for (int j = 0; j < kChunk; ++j) from_float(sum.v[j], &out.v[j]);
    reinterpret_cast<Chunk<T>*>(to)[at] = out;
  }
  return size;
}

// Fills the slots: x_out, size_out, dest. A group takes a row.
template <class Team, class T>
IMAGEPIECE_HERE void move(const Team& team, const Problem& p, const Image<T>& image,
                          const Scratch& s) {
  for (int i = team.thread(); i < p.image_tokens(); i += team.threads()) {
    image.dest[i] = s.dest[i];
  }
  for (int row = team.group(); row < p.prefix + p.n_out; row += team.groups()) {
    T* to = image.x_out + static_cast<size_t>(row) * p.width;
    const int first = row < p.prefix ? kNone : s.first[row - p.prefix];
    float size;
    if (first != kNone && s.next[first] != kNone) {
      size = merge_row(team, p, image, s, first, to);
    } else {
      const int token = first == kNone ? row : p.prefix + first;
      copy_row(team, image.x + static_cast<size_t>(token) * p.width, to,
               p.width / kChunk);
      size = image.size[token];
    }
    if (team.lane() == 0) image.size_out[row] = size;
  }
}

// The whole of it. The team's threads all call this with the same arguments; `s` was
// carved for the same rule and team.
template <Rule rule, class Team, class T>
IMAGEPIECE_HERE void reduce(const Team& team, const Problem& p, const Image<T>& image,
                            const Scratch& s) {
  read_keys<rule>(team, p, image, s);
  if (rule != Rule::kPrune) {  // all of x will be read: let it come while we decide
    const auto* x = reinterpret_cast<const char*>(image.x);
    const int bytes = p.tokens * p.width * static_cast<int>(sizeof(T));
    for (int at = team.thread() * 128; at < bytes; at += team.threads() * 128) {
      team.prefetch(x + at);
    }
  }
  if (rule != Rule::kBipartite) score_tokens(team, p, s);
  if (rule == Rule::kPrune) {
    drop(team, p, s);
  } else {
    if (rule == Rule::kRetokenize) line_up(team, p, s);
    merge<rule>(team, p, s);
  }
  place<rule>(team, p, s);
  move(team, p, image, s);
}

}  // namespace imagepiece

#endif  // IMAGEPIECE_REDUCE_H_
