// The backward kernel, plain and fused: gradients of points and weights, and that of values by atomic sums.
#pragma once

#include "points.cuh"

namespace {

template <typename S>
struct Slopes {
  const S* output;     // (B, Q, M * D): the gradient that comes in
  Real<S>* value;      // (B, S, M, D), zero at the start, or null to leave it to another kernel
  Real<S>* locations;  // (B, Q, M, L, P, 2)
  Real<S>* weights;    // (B, Q, M, L, P)
  Real<S>* softmax;    // (B, Q, M, L, P): the fused form's weights, where the other kernel needs them, or null
};

template <typename T>
struct BackwardSlot {
  Four<int> pixel;
  Four<T> point;   // x, y, weight
  Four<T> change;  // sums over the channels, for x, y and the weight
};

// Each lane's `width` channels of its row: what `count` points have to do with its part of the gradient.
template <typename S, int width>
__device__ __forceinline__ void differentiate_points(const Work<S>& work, const Lane& lane,
                                                     BackwardSlot<Real<S>>* slots, int count, bool active,
                                                     bool is_first, const Real<S> (&gradient)[width], int64_t place,
                                                     Real<S>* target) {
  using T = Real<S>;
  const int64_t stride = static_cast<int64_t>(work.heads) * work.depth;
  for (int k = 0; k < count; ++k) {
    T product[4] = {}, x = T(0), y = T(0);
    if (active) {
      const Four<int> pixel = slots[k].pixel;
      const Four<T> point = slots[k].point;
      x = point.at[0];
      y = point.at[1];
      T values[4][width];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < width; ++i) values[n][i] = T(0);
        if (pixel.at[n] >= 0) read<S, width>(work.value + place + pixel.at[n] * stride, values[n]);
      }
      const Four<T> weight = neighbour_weights(pixel.at, x, y, point.at[2]);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (pixel.at[n] >= 0) {
#pragma unroll
          for (int i = 0; i < width; ++i) product[n] = fma(values[n][i], gradient[i], product[n]);
          if (target != nullptr) add_scaled<T, width>(target + place + pixel.at[n] * stride, weight.at[n], gradient);
        }
      }
    }
    const T across_upper = product[1] - product[0], across_lower = product[3] - product[2];
    const T upper = product[0] + x * across_upper, lower = product[2] + x * across_lower;
    const T change_x = sum_of_group(work, lane, across_upper + y * (across_lower - across_upper));
    const T change_y = sum_of_group(work, lane, lower - upper);
    const T change = sum_of_group(work, lane, upper + y * (lower - upper));
    if (active && lane.channel == 0) {
      T(&sums)[4] = slots[k].change.at;
      sums[0] = is_first ? change_x : sums[0] + change_x;
      sums[1] = is_first ? change_y : sums[1] + change_y;
      sums[2] = is_first ? change : sums[2] + change;
    }
  }
}

// Through a row's softmax: from gradients of its weights to those of its logits, in place.
template <typename S>
__device__ __forceinline__ void differentiate_softmax(const Work<S>& work, const Lane& lane,
                                                      const RowFacts<Real<S>>& facts, int64_t row, Real<S>* gradients) {
  using T = Real<S>;
  const bool active = lane.row < work.rows_per_warp && row < work.rows;
  const T* logits = work.weights + row * work.per_row;
  T* changes = gradients + row * work.per_row;
  T mean = T(0);
  for (int k = lane.channel; active && k < work.per_row; k += work.group) mean += facts.weight(logits[k]) * changes[k];
  mean = __shfl_sync(kAllLanes, sum_of_group(work, lane, mean), lane.leader);
  for (int k = lane.channel; active && k < work.per_row; k += work.group) {
    changes[k] = facts.weight(logits[k]) * (changes[k] - mean);
  }
}

template <typename S, int width>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    backward_kernel(const __grid_constant__ Work<S> work, const __grid_constant__ Slopes<S> slopes) {
  using T = Real<S>;
  char* memory = shared_memory();
  const Level* levels = share_levels(work, memory);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Lane lane(work);
  const bool fused = work.references != nullptr;
  BackwardSlot<T>* slots =
      reinterpret_cast<BackwardSlot<T>*>(memory + work.levels * sizeof(Level)) + warp * work.rows_per_warp * work.pitch;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock * work.rows_per_warp;
  int64_t first_row = (static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp) * work.rows_per_warp;
  for (; first_row < work.rows; first_row += stride) {
    const int64_t row = first_row + lane.row;
    const bool has_row = lane.row < work.rows_per_warp && row < work.rows;
    const RowFacts<T> facts = find_facts(work, lane, row);
    int64_t maps = 0;
    if (has_row) {
      const RowIndex at = find_row(work, row);
      maps = (at.batch * work.pixels * work.heads + at.head) * work.depth;
    }
    for (int first = 0; first < work.per_row; first += work.at_once) {
      const int left = work.per_row - first, count = left < work.at_once ? left : work.at_once;
      for_points(work, levels, lane, facts, first_row, first, count,
                 [&](int slot, int64_t index, const Level&, const Point<T>& point) {
                   const int (&pixel)[4] = point.pixel;
                   slots[slot].pixel = {{pixel[0], pixel[1], pixel[2], pixel[3]}};
                   slots[slot].point = {{point.x, point.y, point.weight, T(0)}};
                   if (slopes.softmax != nullptr) slopes.softmax[index] = point.weight;
                 });
      __syncwarp();
      BackwardSlot<T>* own = slots + (has_row ? lane.row * work.pitch : 0);
      for (int pass = 0; pass < work.passes; ++pass) {
        const int channel = (pass * work.group + lane.channel) * width;
        T gradient[width] = {};
        if (has_row && channel < work.depth) read<S, width>(slopes.output + row * work.depth + channel, gradient);
        differentiate_points<S, width>(work, lane, own, count, has_row && channel < work.depth, pass == 0, gradient,
                                       maps + channel, slopes.value);
      }
      __syncwarp();
      const int total = work.rows_per_warp * count;
      const float one_per_count = 1.0f / static_cast<float>(count);
      for (int i = lane.index; i < total; i += kWarp) {  // a lane a point again
        const int of_row = quotient(i, one_per_count), k = i - of_row * count;
        if (first_row + of_row >= work.rows) break;
        const int64_t index = (first_row + of_row) * work.per_row + first + k;
        const Level level = levels[quotient(first + k, work.one_per_point)];
        const BackwardSlot<T>& slot = slots[of_row * work.pitch + k];
        const T weight = slot.point.at[2];
        const T change[2] = {weight * slot.change.at[0] * (fused ? T(1) : static_cast<T>(level.width)),
                             weight * slot.change.at[1] * (fused ? T(1) : static_cast<T>(level.height))};
        write<T, 2>(change, slopes.locations + 2 * index);
        slopes.weights[index] = slot.change.at[2];
      }
      __syncwarp();  // before the slots are written again
    }
    if (fused) differentiate_softmax(work, lane, facts, row, slopes.weights);
  }
}

}  // namespace
