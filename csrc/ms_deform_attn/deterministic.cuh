// The gradient of values without atomic sums, in the same order in every run.
//
// A warp owns some neighbouring pixels of one head's maps and some channels, and keeps their sums in shared memory. It
// looks at all points of its batch element and head in the order of the queries, 32 at a time, and adds those that
// reach its pixels. A lane owns channels, and so the same places in shared memory for all its tiles: no two lanes meet.
// No map is copied or sorted, and nothing but the result is written.
#pragma once

#include "points.cuh"

namespace {

constexpr int kSumBytes = 8192;  // of shared memory, for a warp's pixels

struct Tiles {
  int pixels, channels;  // of a warp
  int64_t along_pixels;  // how many
  int along_channels;    // how many
  int64_t count;         // for all heads and batch elements
};

template <typename S>
__global__ void __launch_bounds__(kWarp)
    gather_kernel(const __grid_constant__ Work<S> work, const __grid_constant__ Tiles tiles, const S* slopes,
                  const Real<S>* softmax, S* target) {
  using T = Real<S>;
  char* memory = shared_memory();
  T* sums = reinterpret_cast<T*>(memory);
  const int lane = static_cast<int>(threadIdx.x);
  for (int64_t tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    const int64_t among = tile / tiles.along_channels, map = among / tiles.along_pixels;
    const int first_channel = static_cast<int>(tile - among * tiles.along_channels) * tiles.channels;
    const int channels = min(tiles.channels, work.depth - first_channel);
    const int begin = static_cast<int>((among - map * tiles.along_pixels) * tiles.pixels);
    const int end = static_cast<int>(min(work.pixels, static_cast<int64_t>(begin) + tiles.pixels));
    const int64_t batch = map / work.heads, head = map - batch * work.heads;
    for (int p = 0; p < end - begin; ++p) {
      for (int c = lane; c < channels; c += kWarp) sums[p * tiles.channels + c] = T(0);
    }
    for (int l = 0; l < work.levels; ++l) {
      const Level level = work.level[l];
      if (level.start >= end || level.start + level.height * level.width <= begin) continue;
      int64_t query = lane / work.points;
      int number = lane % work.points;
      while (__any_sync(kAllLanes, query < work.queries)) {
        Point<T> point = {{-1, -1, -1, -1}, T(0), T(0), T(0)};
        const int64_t row = (batch * work.queries + query) * work.heads + head;
        if (query < work.queries) {
          const int64_t index = row * work.per_row + l * work.points + number;
          T place[2];
          read<T, 2>(work.locations + 2 * index, place);
          point.weight = softmax[index];
          if (work.references != nullptr) {
            const int64_t first = (work.references_per_batch ? batch * work.queries : 0) + query;
            const T* reference = work.references + 2 * (work.references_per_level ? first * work.levels + l : first);
            place_point(level, reference[0], reference[1], place[0], place[1], &point);
          } else {
            place_point(level, place[0], place[1], T(0), T(0), &point);
          }
        }
        const Four<T> weight = neighbour_weights(point.pixel, point.x, point.y, point.weight);
        bool reaches = false;
        for (int n = 0; n < 4; ++n) {
          const bool inside = point.pixel[n] >= begin && point.pixel[n] < end;
          point.pixel[n] = inside ? point.pixel[n] - begin : -1;
          reaches = reaches || inside;
        }
        for (unsigned left = __ballot_sync(kAllLanes, reaches); left != 0; left &= left - 1) {
          const int source = __ffs(static_cast<int>(left)) - 1;
          const S* slope = slopes + __shfl_sync(kAllLanes, row, source) * work.depth + first_channel;
          int pixel[4];
          T share[4];
          for (int n = 0; n < 4; ++n) {
            pixel[n] = __shfl_sync(kAllLanes, point.pixel[n], source);
            share[n] = __shfl_sync(kAllLanes, weight.at[n], source);
          }
          for (int c = lane; c < channels; c += kWarp) {
            const T change = widen(slope[c]);
            for (int n = 0; n < 4; ++n) {
              if (pixel[n] >= 0) sums[pixel[n] * tiles.channels + c] += share[n] * change;
            }
          }
        }
        number += kWarp % work.points;
        query += kWarp / work.points + (number >= work.points ? 1 : 0);
        number -= number >= work.points ? work.points : 0;
      }
    }
    for (int p = 0; p < end - begin; ++p) {
      S* pixel = target + ((batch * work.pixels + begin + p) * work.heads + head) * work.depth + first_channel;
      for (int c = lane; c < channels; c += kWarp) narrow(sums[p * tiles.channels + c], &pixel[c]);
    }
  }
}

}  // namespace
