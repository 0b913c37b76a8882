// Who ranks where, and who resembles whom most?
//
// Ties go to the lower index or place; what is NaN counts as minus infinity.
#ifndef IMAGEPIECE_MATCH_H_
#define IMAGEPIECE_MATCH_H_

#include "keys.h"
#include "problem.h"

namespace imagepiece {

// visit(i, position of i by falling s.score, ties to the lower index) for i < count.
template <class Team, class Visit>
IMAGEPIECE_HERE void rank(const Team& team, const Scratch& s, int count, Visit visit) {
  for (int i = team.group(); i < count; i += team.groups()) {
    const float mine = s.score[i];
    int before = 0, j = team.lane();
    for (; j < i; j += Team::kLanes) before += s.score[j] >= mine;
    for (; j < count; j += Team::kLanes) before += s.score[j] > mine;
    before = team.sum(before);
    if (team.lane() == 0) visit(i, before);
  }
  team.sync();
}

// The token at a place of side A or B; in bipartite matching all image tokens, in order.
template <Rule rule>
IMAGEPIECE_HERE int split_token(const Problem& p, const Scratch& s, bool side_a, int place) {
  const int at = 2 * place + (side_a ? p.parity : 1 - p.parity);
  return rule == Rule::kBipartite ? at : s.line[at];
}

// The highest so far and its column; columns come in order.
struct Best {
  float value = -INFINITY;
  int col = kNone;

  IMAGEPIECE_HERE void meet(float other, int other_col) {
    other = last_if_nan(other);
    if (col == kNone || other > value) value = other, col = other_col;
  }
};

// Cosines of a tile of pairs, whose features begin at a[..] and b[..] of `metric`.
template <class Team>
IMAGEPIECE_HERE void cosines(const float* metric, int width,
                             const int (&a)[Team::kRows], const int (&b)[Team::kCols],
                             float (&out)[Team::kRows][Team::kCols]) {
  using Step = typename Team::Step;
  constexpr int kStep = sizeof(Step) / sizeof(float);
  typename Team::Sum sums[Team::kRows][Team::kCols] = {};
  IMAGEPIECE_ROLLED
  for (int k = 0; k < width; k += kStep) {
    Step left[Team::kRows];
    IMAGEPIECE_UNROLL
    for (int r = 0; r < Team::kRows; ++r) {
      left[r] = *reinterpret_cast<const Step*>(metric + a[r] + k);
    }
    IMAGEPIECE_UNROLL
    for (int c = 0; c < Team::kCols; ++c) {
      const Step right = *reinterpret_cast<const Step*>(metric + b[c] + k);
      IMAGEPIECE_UNROLL
      for (int r = 0; r < Team::kRows; ++r) Team::add(sums[r][c], left[r], right);
    }
  }
  IMAGEPIECE_UNROLL
  for (int r = 0; r < Team::kRows; ++r) {
    IMAGEPIECE_UNROLL
    for (int c = 0; c < Team::kCols; ++c) out[r][c] = Team::total(sums[r][c]);
  }
}

// Most similar token of side B for each of side A -> s.partner, and how similar, as
// s.score. A thread takes a tile of rows and one strip of the columns.
template <Rule rule, class Team>
IMAGEPIECE_HERE void compare(const Team& team, const Problem& p, const Scratch& s) {
  constexpr int kRows = Team::kRows, kCols = Team::kCols;
  const int rows = p.rows(), cols = p.cols();
  const int row_tiles = (rows + kRows - 1) / kRows;
  const int col_tiles = (cols + kCols - 1) / kCols;
  const int parts = strips<Team>(p, team.threads());
  const int strip = (col_tiles + parts - 1) / parts * kCols;
  auto features = [&](bool side_a, int place, int end) {  // beyond it: the last again
    const int token = split_token<rule>(p, s, side_a, place < end ? place : end - 1);
    return metric_row<rule>(p, token) * p.stride();
  };
  for (int i = team.thread(); i < row_tiles * parts; i += team.threads()) {
    const int tile = i % row_tiles, part = i / row_tiles;
    const int begin = part * strip;
    const int end = begin + strip < cols ? begin + strip : cols;
    int a[kRows], b[kCols];
    Best best[kRows];
    IMAGEPIECE_UNROLL
    for (int r = 0; r < kRows; ++r) a[r] = features(true, tile + r * row_tiles, rows);
    IMAGEPIECE_ROLLED
    for (int col = begin; col < end; col += kCols) {
      IMAGEPIECE_UNROLL
      for (int c = 0; c < kCols; ++c) b[c] = features(false, col + c, cols);
      float similar[kRows][kCols];
      cosines<Team>(s.metric, p.head_width, a, b, similar);
      IMAGEPIECE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        IMAGEPIECE_UNROLL
        for (int c = 0; c < kCols; ++c) {
          if (col + c < end) best[r].meet(similar[r][c], col + c);
        }
      }
    }
    IMAGEPIECE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int row = tile + r * row_tiles;
      if (row >= rows) break;
      s.best[row * parts + part] = best[r].value;
      s.best_col[row * parts + part] = best[r].col;
    }
  }
  team.sync();
  for (int row = team.thread(); row < rows; row += team.threads()) {
    Best best;
    for (int at = row * parts; at < (row + 1) * parts; ++at) {
      if (s.best_col[at] != kNone) best.meet(s.best[at], s.best_col[at]);
    }
    s.partner[row] = best.col;
    s.score[row] = best.value;
  }
  team.sync();
}

}  // namespace imagepiece

#endif  // IMAGEPIECE_MATCH_H_
