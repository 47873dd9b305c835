// Second phase on the maps where they are: for few queries of large maps, where packing would cost more than reading.
#pragma once

#include "gradients.h"

namespace {

template <typename T>
struct DirectScratch {
  using Int = typename Lanes<T>::Int;
  PointTable<T> table;
  PointProducts<T> products;
  Int *column = nullptr, *row = nullptr;
  T* channels = nullptr;  // one query and head, padded to whole vectors

  DirectScratch(Arena& arena, const Problem& problem, int64_t heads) {
    table.take(arena, problem, heads);
    products.take(arena, table.padded);
    column = arena.take<Int>(table.padded);
    row = arena.take<Int>(table.padded);
    channels = arena.take<T>(rounded_up(problem.depth, Lanes<T>::count));
  }

  void find(const Problem& problem, const Inputs& in, const Piece& piece, int64_t query) {
    for_points<T>(problem, in, table, piece, query, 1, [&](int64_t, int64_t i, const Points<T>& points) {
      products.put(i, points);
      std::memcpy(column + i, &points.column, sizeof(points.column));
      std::memcpy(row + i, &points.row, sizeof(points.row));
    });
  }

  // Call use(corner, element of the neighbour's first channel in its head's value, weight in the bilinear mean) for
  // those of a point's four neighbours that lie in the map.
  template <typename Use>
  void for_neighbours(const Problem& problem, int64_t i, int64_t level, int64_t level_start, Use use) const {
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t x = column[i] - kFrame + corner % 2, y = row[i] - kFrame + corner / 2;
      if (x < 0 || y < 0 || x >= problem.widths[level] || y >= problem.heights[level]) continue;
      const T weight_x = corner % 2 == 1 ? products.x[i] : T(1) - products.x[i];
      const T weight_y = corner / 2 == 1 ? products.y[i] : T(1) - products.y[i];
      const int64_t pixel = level_start + y * problem.widths[level] + x;
      use(corner, pixel * problem.heads * problem.depth, weight_x * weight_y);
    }
  }
};

template <typename T, typename S>
bool forward_direct(const Problem& problem, const Inputs& in, S* output, const Piece& piece) {
  constexpr int n = Lanes<T>::count;
  Arena measure(nullptr);
  DirectScratch<T> sized(measure, problem, piece.heads);
  char* memory = static_cast<char*>(dinomed::borrow_scratch(measure.used()));
  if (memory == nullptr) return false;
  Arena arena(memory);
  DirectScratch<T> scratch(arena, problem, piece.heads);
  scratch.table.fill(problem, 0);
  const int depth = static_cast<int>(problem.depth);
  const S* maps = static_cast<const S*>(in.value) + piece.batch * problem.pixels * problem.heads * problem.depth;
  for (int64_t query = piece.first_query; query < piece.first_query + piece.queries; ++query) {
    scratch.find(problem, in, piece, query);
    int64_t i = 0;
    for (int64_t head = piece.first_head; head < piece.first_head + piece.heads; ++head) {
      const S* map = maps + head * depth;
      for (int d = 0; d < depth; d += n) store(scratch.channels + d, Vec<T>{});
      int64_t level_start = 0;
      for (int64_t level = 0; level < problem.levels; ++level) {
        for (int64_t p = 0; p < problem.points; ++p, ++i) {
          const T point_weight = scratch.products.weight[i];
          // A point that is no number, or weighs none, spoils the sum even where none of its neighbours is in the map.
          const T spoils = scratch.products.x[i] + scratch.products.y[i] + point_weight;
          if (spoils != spoils) {
            for (int d = 0; d < depth; d += n) store(scratch.channels + d, splat<T>(__builtin_nan("")));
          }
          scratch.for_neighbours(problem, i, level, level_start, [&](int, int64_t element, T weight) {
            const S* value = map + element;
            for (int d = 0; d < depth; d += n) {
              const Vec<T> sum = load(scratch.channels + d);
              store(scratch.channels + d, sum + (point_weight * weight) * load_up_to(value + d, depth - d));
            }
          });
        }
        level_start += problem.heights[level] * problem.widths[level];
      }
      S* target = output + ((piece.batch * problem.queries + query) * problem.heads + head) * problem.depth;
      for (int d = 0; d < depth; d += n) store_up_to(target + d, load(scratch.channels + d), depth - d);
    }
  }
  dinomed::return_scratch();
  return true;
}

template <typename T, typename S>
bool backward_direct(const Problem& problem, const Inputs& in, const Gradients& gradients, const Piece& piece) {
  constexpr int n = Lanes<T>::count;
  Arena measure(nullptr);
  DirectScratch<T> sized(measure, problem, piece.heads);
  char* memory = static_cast<char*>(dinomed::borrow_scratch(measure.used()));
  if (memory == nullptr) return false;
  Arena arena(memory);
  DirectScratch<T> scratch(arena, problem, piece.heads);
  scratch.table.fill(problem, 0);
  const int depth = static_cast<int>(problem.depth);
  const int64_t batch_start = piece.batch * problem.pixels * problem.heads * problem.depth;
  for (int64_t query = piece.first_query; query < piece.first_query + piece.queries; ++query) {
    scratch.find(problem, in, piece, query);
    int64_t i = 0;
    for (int64_t head = piece.first_head; head < piece.first_head + piece.heads; ++head) {
      const S* map = static_cast<const S*>(in.value) + batch_start + head * depth;
      T* change = static_cast<T*>(gradients.value) + batch_start + head * depth;
      const S* incoming = static_cast<const S*>(gradients.output) +
                          ((piece.batch * problem.queries + query) * problem.heads + head) * problem.depth;
      for (int d = 0; d < depth; d += n) store(scratch.channels + d, load_up_to(incoming + d, depth - d));
      int64_t level_start = 0;
      for (int64_t level = 0; level < problem.levels; ++level) {
        for (int64_t p = 0; p < problem.points; ++p, ++i) {
          const T point_weight = scratch.products.weight[i];
          for (T* product : scratch.products.product) product[i] = T(0);
          scratch.for_neighbours(problem, i, level, level_start, [&](int corner, int64_t element, T weight) {
            Vec<T> product{};
            for (int d = 0; d < depth; d += n) {
              const Vec<T> gradient = load(scratch.channels + d);
              T* target = change + element + d;
              product += gradient * load_up_to(map + element + d, depth - d);
              store_up_to(target, load_up_to(target, depth - d) + (point_weight * weight) * gradient, depth - d);
            }
            T sum = 0;
            for (int lane = 0; lane < n; ++lane) sum += product[lane];
            scratch.products.product[corner][i] = sum;
          });
        }
        level_start += problem.heights[level] * problem.widths[level];
      }
    }
    write_gradients(problem, in, gradients, scratch.table, scratch.products, piece, query);
  }
  dinomed::return_scratch();
  return true;
}

}  // namespace
