// The gradients of points and weights from the products of the output's gradient with the four neighbours.
#pragma once

#include "points.h"

namespace {

using dinomed::Gradients;

// What one query's points leave behind for their gradients.
template <typename T>
struct PointProducts {
  T *x = nullptr, *y = nullptr, *weight = nullptr;  // as in Points
  T* product[4] = {};                               // of the output's gradient and each neighbour's values
  T* change = nullptr;                              // gradient of the weight

  void take(Arena& arena, int64_t count) {
    T** const arrays[] = {&x, &y, &weight, &change};
    for (T** array : arrays) *array = arena.take<T>(count);
    for (T*& array : product) array = arena.take<T>(count);
  }

  void put(int64_t i, const Points<T>& points) {
    store(x + i, points.x);
    store(y + i, points.y);
    store(weight + i, points.weight);
  }
};

// Write the gradients of one query's locations (or offsets) and weights (or logits).
template <typename T>
DINOMED_SEPARATE void write_gradients(const Problem& problem, const Inputs& in, const Gradients& gradients,
                                      const PointTable<T>& table, const PointProducts<T>& products, const Piece& piece,
                                      int64_t query) {
  constexpr int n = Lanes<T>::count;
  const int64_t per_head = problem.levels * problem.points;
  const int64_t first = ((piece.batch * problem.queries + query) * problem.heads + piece.first_head) * per_head;
  T* locations = static_cast<T*>(gradients.locations) + 2 * first;
  T* weights = static_cast<T*>(gradients.weights) + first;
  const bool fused = in.references != nullptr;
  for (int64_t i = 0; i < table.count; i += n) {
    const int left = static_cast<int>(table.count - i < n ? table.count - i : n);
    const Vec<T> x = load(products.x + i), y = load(products.y + i), weight = load(products.weight + i);
    const Vec<T> upper_left = load(products.product[0] + i), upper_right = load(products.product[1] + i);
    const Vec<T> lower_left = load(products.product[2] + i), lower_right = load(products.product[3] + i);
    const Vec<T> across_upper = upper_right - upper_left, across_lower = lower_right - lower_left;
    const Vec<T> upper = upper_left + x * across_upper, lower = lower_left + x * across_lower;
    const Vec<T> change = upper + y * (lower - upper);
    Vec<T> change_x = weight * (across_upper + y * (across_lower - across_upper));
    Vec<T> change_y = weight * (lower - upper);
    if (fused) {
      store(products.change + i, change);
    } else {
      change_x *= load(table.width + i);
      change_y *= load(table.height + i);
      store_up_to(weights + i, change, left);
    }
    Vec<T> low, high;
    interleave<T>(change_x, change_y, &low, &high);
    store_up_to(locations + 2 * i, low, 2 * left);
    if (2 * left > n) store_up_to(locations + 2 * i + n, high, 2 * left - n);
  }
  if (!fused) return;
  for (int64_t i = 0; i < table.count; i += per_head) {  // through each head's softmax
    T mean = 0;
    for (int64_t p = i; p < i + per_head; ++p) mean += products.weight[p] * products.change[p];
    for (int64_t p = i; p < i + per_head; ++p) weights[p] = products.weight[p] * (products.change[p] - mean);
  }
}

}  // namespace
