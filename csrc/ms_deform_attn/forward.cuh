// The forward kernel, plain and fused.
#pragma once

#include "points.cuh"

namespace {

template <typename T>
struct ForwardSlot {
  Four<int> pixel;
  Four<T> weight;
};

// Each lane's `width` channels of its row: read the neighbours of `count` points and add them to the sum.
template <typename S, int width>
__device__ __forceinline__ void add_points(const ForwardSlot<Real<S>>* slots, int count, const S* maps,
                                           int bytes_per_pixel, Real<S> (&sum)[width]) {
  using T = Real<S>;
#pragma unroll 2
  for (int k = 0; k < count; ++k) {
    const Four<int> pixel = slots[k].pixel;
    const Four<T> weight = slots[k].weight;
    T values[4][width];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < width; ++i) values[n][i] = T(0);
      if (pixel.at[n] >= 0) {
        const char* at = reinterpret_cast<const char*>(maps) + static_cast<int64_t>(pixel.at[n]) * bytes_per_pixel;
        read<S, width>(reinterpret_cast<const S*>(at), values[n]);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] = fma(weight.at[n], values[n][i], sum[i]);
    }
  }
}

template <typename S, int width>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    forward_kernel(const __grid_constant__ Work<S> work, S* output) {
  using T = Real<S>;
  char* memory = shared_memory();
  const Level* levels = share_levels(work, memory);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Lane lane(work);
  ForwardSlot<T>* slots =
      reinterpret_cast<ForwardSlot<T>*>(memory + work.levels * sizeof(Level)) + warp * work.rows_per_warp * work.pitch;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock * work.rows_per_warp;
  int64_t first_row = (static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp) * work.rows_per_warp;
  const int bytes_per_pixel = work.heads * work.depth * static_cast<int>(sizeof(S));
  for (; first_row < work.rows; first_row += stride) {
    const int64_t row = first_row + lane.row;
    const RowFacts<T> facts = find_facts(work, lane, row);
    for (int pass = 0; pass < work.passes; ++pass) {
      const int channel = (pass * work.group + lane.channel) * width;
      const bool active = lane.row < work.rows_per_warp && row < work.rows && channel < work.depth;
      const S* maps = work.value;
      if (active) {
        const RowIndex at = find_row(work, row);
        maps += (at.batch * work.pixels * work.heads + at.head) * work.depth + channel;
      }
      T sum[width] = {};
      for (int first = 0; first < work.per_row; first += work.at_once) {
        const int left = work.per_row - first, count = left < work.at_once ? left : work.at_once;
        for_points(work, levels, lane, facts, first_row, first, count,
                   [&](int slot, int64_t, const Level&, const Point<T>& point) {
                     const int (&pixel)[4] = point.pixel;
                     slots[slot].pixel = {{pixel[0], pixel[1], pixel[2], pixel[3]}};
                     slots[slot].weight = neighbour_weights(pixel, point.x, point.y, point.weight);
                   });
        __syncwarp();
        if (active) add_points<S, width>(slots + lane.row * work.pitch, count, maps, bytes_per_pixel, sum);
        __syncwarp();  // before the slots are written again
      }
      if (active) write<S, width>(sum, output + row * work.depth + channel);
    }
  }
}

}  // namespace
