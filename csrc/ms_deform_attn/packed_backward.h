// Gradients on packed maps: each neighbour's row is read, multiplied and added to, without a test and without atomics.
#pragma once

#include "gradients.h"
#include "packed.h"

namespace {

template <typename T>
struct BackwardScratch {
  PointTable<T> table;
  PackedMaps<T> maps, changes;
  Taps<T> taps;
  PointProducts<T> products;
  int64_t* pitches = nullptr;
  T* output = nullptr;  // one query's and head's gradient that comes in, padded with zeros

  BackwardScratch(Arena& arena, const Problem& problem, int64_t heads) {
    table.take(arena, problem, heads);
    maps.take(arena, problem, heads);
    changes.take(arena, problem, heads);
    taps.take(arena, table.padded);
    products.take(arena, table.padded + Lanes<T>::count);
    pitches = arena.take<int64_t>(problem.levels);
    output = arena.take<T>(maps.row);
  }
};

// One neighbour: its product with the output's gradient, lane by lane, and the gradient of its values.
template <typename T, int Vectors>
inline __attribute__((always_inline)) Vec<T> visit(const T* value, T* change, const Vec<T>* gradient, T weight) {
  constexpr int n = Lanes<T>::count;
  Vec<T> product = gradient[0] * load(value);
  store(change, load(change) + weight * gradient[0]);
  for (int v = 1; v < Vectors; ++v) {
    product += gradient[v] * load(value + v * n);
    store(change + v * n, load(change + v * n) + weight * gradient[v]);
  }
  return product;
}

// `Count` points of one query and head; product[corner * batch + p] gets the lanes' products of a neighbour of a point.
// `Whole`: the vectors are all of a pixel's. `OneLevel`: every point has the same pitch.
template <typename T, int Vectors, int Count, bool Whole, bool OneLevel>
inline __attribute__((always_inline)) void visit_points(const BackwardScratch<T>& scratch, int64_t head, int64_t first,
                                                        int64_t points, int64_t first_in_head, int64_t channel,
                                                        Vec<T>* product) {
  constexpr int n = Lanes<T>::count, batch = n / 4 > 0 ? n / 4 : 1;
  const int64_t row = Whole ? Vectors * n : scratch.maps.row, start = head * scratch.maps.head + channel;
  const T* const values = scratch.maps.data + start;
  T* const changes = scratch.changes.data + start;
  const auto* offset = scratch.taps.offset + first;
  const int64_t* pitches = scratch.pitches;
  const T *upper_left = scratch.taps.weight[0] + first, *upper_right = scratch.taps.weight[1] + first;
  const T *lower_left = scratch.taps.weight[2] + first, *lower_right = scratch.taps.weight[3] + first;
  Vec<T> gradient[Vectors];
  for (int v = 0; v < Vectors; ++v) gradient[v] = load(scratch.output + channel + v * n);
#pragma GCC unroll 4
  for (int p = 0; p < Count; ++p) {
    const int64_t upper = offset[p], lower = upper + pitches[OneLevel ? 0 : (first_in_head + p) / points];
    product[p] = visit<T, Vectors>(values + upper, changes + upper, gradient, upper_left[p]);
    product[batch + p] = visit<T, Vectors>(values + upper + row, changes + upper + row, gradient, upper_right[p]);
    product[2 * batch + p] = visit<T, Vectors>(values + lower, changes + lower, gradient, lower_left[p]);
    product[3 * batch + p] = visit<T, Vectors>(values + lower + row, changes + lower + row, gradient, lower_right[p]);
  }
}

// All points of one query, head after head, a quarter of a vector's lanes at once. Vectors is 0 for very wide heads.
template <typename T, typename S, int Vectors, bool OneLevel>
DINOMED_SEPARATE void visit_heads(const Problem& problem, const BackwardScratch<T>& given, const S* output,
                                  int64_t heads) {
  constexpr int n = Lanes<T>::count, batch = n / 4 > 0 ? n / 4 : 1;
  const BackwardScratch<T> scratch = given;  // a copy, so that no store makes the compiler read it again
  const int64_t points = problem.points, per_head = problem.levels * points;
  const int depth = static_cast<int>(problem.depth);
  for (int64_t head = 0; head < heads; ++head, output += depth) {
    for (int d = 0; d < depth; d += n) store(scratch.output + d, load_up_to(output + d, depth - d));
    for (int64_t p = 0; p < per_head; p += batch) {
      const int count = static_cast<int>(per_head - p < batch ? per_head - p : batch);
      const int64_t first = head * per_head + p;
      Vec<T> product[4 * batch];
      if (Vectors > 0 && count == batch) {
        constexpr int whole = Vectors > 0 ? Vectors : 1;
        visit_points<T, whole, batch, true, OneLevel>(scratch, head, first, points, p, 0, product);
      } else {
        for (Vec<T>& sum : product) sum = Vec<T>{};
        for (int one = 0; one < count; ++one) {
          for (int64_t channel = 0; channel < scratch.maps.row; channel += n) {
            Vec<T> part[3 * batch + 1];
            visit_points<T, 1, 1, false, OneLevel>(scratch, head, first + one, points, p + one, channel, part);
            for (int corner = 0; corner < 4; ++corner) product[corner * batch + one] += part[corner * batch];
          }
        }
      }
      if constexpr (n >= 4) {
        const Vec<T> sums = sum_lanes_of_each<T>(product);
        // Lanes past `count` go to the next head's places, which are written after, or to the padding.
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          std::memcpy(scratch.products.product[k] + first, reinterpret_cast<const char*>(&sums) + k * batch * sizeof(T),
                      batch * sizeof(T));
        }
      } else {
        for (int k = 0; k < 4; ++k) scratch.products.product[k][first] = product[k][0] + product[k][1];
      }
    }
  }
}

template <typename T, typename S, int Vectors>
inline void visit_levels(const Problem& problem, const BackwardScratch<T>& scratch, const S* output, int64_t heads) {
  if (problem.levels == 1) return visit_heads<T, S, Vectors, true>(problem, scratch, output, heads);
  return visit_heads<T, S, Vectors, false>(problem, scratch, output, heads);
}

template <typename T, typename S>
inline void visit_all_heads(const Problem& problem, const BackwardScratch<T>& scratch, const S* output, int64_t heads) {
  switch (scratch.maps.row / Lanes<T>::count) {
    case 1: return visit_levels<T, S, 1>(problem, scratch, output, heads);
    case 2: return visit_levels<T, S, 2>(problem, scratch, output, heads);
    case 3: return visit_levels<T, S, 3>(problem, scratch, output, heads);
    case 4: return visit_levels<T, S, 4>(problem, scratch, output, heads);
    default: return visit_levels<T, S, 0>(problem, scratch, output, heads);
  }
}

template <typename T, typename S>
bool backward_packed(const Problem& problem, const Inputs& in, const Gradients& gradients, const Piece& piece) {
  Arena measure(nullptr);
  BackwardScratch<T> sized(measure, problem, piece.heads);
  char* memory = static_cast<char*>(dinomed::borrow_scratch(measure.used()));
  if (memory == nullptr) return false;
  Arena arena(memory);
  BackwardScratch<T> scratch(arena, problem, piece.heads);
  scratch.table.fill(problem, scratch.maps.row);
  scratch.maps.fill(problem, static_cast<const S*>(in.value), piece);
  std::memset(scratch.changes.data, 0, sizeof(T) * static_cast<uint64_t>(piece.heads * scratch.changes.head));
  for (int64_t l = 0; l < problem.levels; ++l) scratch.pitches[l] = framed_pitch(problem, l) * scratch.maps.row;
  const int depth = static_cast<int>(problem.depth);
  for (int64_t query = piece.first_query; query < piece.first_query + piece.queries; ++query) {
    for_points<T>(problem, in, scratch.table, piece, query, 1, [&](int64_t, int64_t i, const Points<T>& points) {
      scratch.products.put(i, points);
      scratch.taps.put(i, points, load_int<T>(scratch.table.base + i), load_int<T>(scratch.table.pitch + i),
                       scratch.maps.row);
    });
    const S* output = static_cast<const S*>(gradients.output) +
                      ((piece.batch * problem.queries + query) * problem.heads + piece.first_head) * problem.depth;
    constexpr int64_t line = 64 / sizeof(S);
    for (int64_t d = 0; d < piece.heads * depth; d += line) {
      __builtin_prefetch(output + kAhead * problem.heads * depth + d);
    }
    visit_all_heads(problem, scratch, output, piece.heads);
    write_gradients(problem, in, gradients, scratch.table, scratch.products, piece, query);
  }
  scratch.changes.copy_out(problem, static_cast<S*>(gradients.value), piece);
  dinomed::return_scratch();
  return true;
}

}  // namespace
