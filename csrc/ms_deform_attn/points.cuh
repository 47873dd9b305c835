// Which lanes of a warp do what, where points lie, and the softmax of the fused form.
//
// A row is a query's head: `per_row` points that read `depth` channels. A warp takes as many rows as fit when every
// lane holds `width` channels, `group` lanes a row. It first places all points of its rows, a lane each, and leaves the
// neighbours' pixels and weights in shared memory; then each lane reads its channels of all neighbours.
#pragma once

#include "device.cuh"

namespace {

constexpr int kMaxLevels = 64;
constexpr int kWarpsPerBlock = 4;
constexpr int kPointsPerWarp = 64;  // about as many as are placed at once

struct alignas(16) Level {
  int height, width;
  int start;  // its first pixel among all levels'
  int padding;
};

// One call, as a kernel's argument. In the fused form (references is not null) locations are offsets and weights
// logits.
template <typename S>
struct Work {
  const S* value;             // (B, S, M, D)
  const Real<S>* locations;   // (B, Q, M, L, P, 2)
  const Real<S>* weights;     // (B, Q, M, L, P)
  const Real<S>* references;  // (B or 1, Q, L or 1, 2), or null
  int64_t rows, queries, pixels;
  int heads, depth, levels, points, per_row;
  bool references_per_batch, references_per_level;
  int group;          // lanes of a row
  int reach;          // the largest power of two below `group`
  int rows_per_warp;  // as many as fit
  int passes;         // over the channels, where a warp's lanes do not hold all of them
  int at_once;        // points of a row that are placed together
  int pitch;          // slots of a row in shared memory, odd so that rows lie in different banks
  float one_per_point;
  Level level[kMaxLevels];
};

struct RowIndex {
  int64_t batch, query;
  int head;
};

template <typename S>
__device__ __forceinline__ RowIndex find_row(const Work<S>& work, int64_t row) {
  if (work.rows <= 0xffffffffll) {  // a division of 64-bit numbers takes many times longer
    const uint32_t all = static_cast<uint32_t>(row), heads = static_cast<uint32_t>(work.heads);
    const uint32_t query = all / heads, queries = static_cast<uint32_t>(work.queries), batch = query / queries;
    return {batch, query - batch * queries, static_cast<int>(all - query * heads)};
  }
  const int64_t query = row / work.heads, batch = query / work.queries;
  return {batch, query - batch * work.queries, static_cast<int>(row - query * work.heads)};
}

// i / n from 1 / n, right for i below 2^22.
__device__ __forceinline__ int quotient(int i, float one_per_n) {
  return static_cast<int>((static_cast<float>(i) + 0.5f) * one_per_n);
}

// The pixel before a coordinate and the way from it: 0 to 1, or NaN. The way is found from the coordinate's factors
// again, in one fused multiply-add, so that it keeps its precision on large maps; where it shows that rounding had put
// the coordinate on the other side of a pixel's centre, the pixel is the next one. Two pixels beyond an edge, where
// both neighbours are outside, are as far as infinity. A map without pixels is as one whose only pixel counts nothing.
template <typename T>
__device__ __forceinline__ void split(T location, T offset, int size, int* whole, T* part) {
  const T length = size > 0 ? static_cast<T>(size) : T(1);
  T place = fma(location, length, offset - T(0.5));
  place = place > T(-2) ? place : T(-2);  // NaN goes there too
  place = place < length ? place : length;
  *whole = static_cast<int>(place + T(2)) - 2;
  T way = fma(location, length, -(static_cast<T>(*whole) + T(0.5))) + offset;
  const bool back = way < T(0) && *whole > -2, on = way >= T(1) && *whole < size;
  *whole += static_cast<int>(on) - static_cast<int>(back);
  way += static_cast<T>(static_cast<int>(back) - static_cast<int>(on));
  way = way < T(-1) ? T(-1) : way;  // points at infinity; NaN stays
  *part = way > T(2) ? T(2) : way;
}

template <typename T>
struct Point {
  int pixel[4];  // of the neighbours: upper left, upper right, lower left, lower right; -1 if outside the map
  T x, y;        // way from the upper left one
  T weight;
};

template <typename T>
__device__ __forceinline__ void place_point(const Level& level, T x, T y, T offset_x, T offset_y, Point<T>* point) {
  int column, row;
  split(x, offset_x, level.width, &column, &point->x);
  split(y, offset_y, level.height, &row, &point->y);
  const int first = level.start + row * level.width + column;
  const bool left = static_cast<unsigned>(column) < static_cast<unsigned>(level.width);
  const bool right = static_cast<unsigned>(column + 1) < static_cast<unsigned>(level.width);
  const bool upper = static_cast<unsigned>(row) < static_cast<unsigned>(level.height);
  const bool lower = static_cast<unsigned>(row + 1) < static_cast<unsigned>(level.height);
  point->pixel[0] = left && upper ? first : -1;
  point->pixel[1] = right && upper ? first + 1 : -1;
  point->pixel[2] = left && lower ? first + level.width : -1;
  point->pixel[3] = right && lower ? first + level.width + 1 : -1;
}

// What each neighbour's values count. One outside is a zero that was read: it counts nothing, unless the point is NaN.
template <typename T>
__device__ __forceinline__ Four<T> neighbour_weights(const int (&pixel)[4], T x, T y, T weight) {
  const T outside = (weight + x + y) * T(0);
  const T left = T(1) - x, upper = T(1) - y;
  return {{pixel[0] < 0 ? outside : weight * (left * upper), pixel[1] < 0 ? outside : weight * (x * upper),
           pixel[2] < 0 ? outside : weight * (left * y), pixel[3] < 0 ? outside : weight * (x * y)}};
}

// A lane's place in its warp, and the row that it helps with.
struct Lane {
  int index;    // in the warp
  int row;      // of the warp's; lanes that are left over are given one too many
  int channel;  // of the group's lanes
  int leader;   // the group's first lane

  template <typename S>
  __device__ __forceinline__ explicit Lane(const Work<S>& work) {
    index = static_cast<int>(threadIdx.x) % kWarp;
    row = index / work.group;
    channel = index - row * work.group;
    leader = row * work.group;
  }
};

// Sum over a row's lanes, given to the first of them. All lanes of the warp must call it.
template <typename S, typename T>
__device__ __forceinline__ T sum_of_group(const Work<S>& work, const Lane& lane, T x) {
  for (int step = work.reach; step > 0; step >>= 1) {
    const T other = __shfl_down_sync(kAllLanes, x, step);
    if (lane.channel + step < work.group) x += other;
  }
  return x;
}

template <typename S, typename T>
__device__ __forceinline__ T most_of_group(const Work<S>& work, const Lane& lane, T x) {
  for (int step = work.reach; step > 0; step >>= 1) {
    const T other = __shfl_down_sync(kAllLanes, x, step);
    if (lane.channel + step < work.group && other > x) x = other;
  }
  return x;
}

// What the fused form has to know of a row: weight = exp(logit - most) * scale.
template <typename T>
struct RowFacts {
  T most = T(0), scale = T(0);
  int64_t reference = 0;  // its first element

  __device__ __forceinline__ T weight(T logit) const { return exp(logit - most) * scale; }
};

// All lanes of the warp must call it; `row` may lie beyond the last one.
template <typename S>
__device__ __forceinline__ RowFacts<Real<S>> find_facts(const Work<S>& work, const Lane& lane, int64_t row) {
  using T = Real<S>;
  RowFacts<T> facts;
  if (work.references == nullptr) return facts;
  const bool active = lane.row < work.rows_per_warp && row < work.rows;
  const T* logits = work.weights + row * work.per_row;
  T most = -INFINITY, sum = T(0);
  for (int k = lane.channel; active && k < work.per_row; k += work.group) most = logits[k] > most ? logits[k] : most;
  facts.most = __shfl_sync(kAllLanes, most_of_group(work, lane, most), lane.leader);
  for (int k = lane.channel; active && k < work.per_row; k += work.group) sum += exp(logits[k] - facts.most);
  facts.scale = T(1) / __shfl_sync(kAllLanes, sum_of_group(work, lane, sum), lane.leader);
  if (active) {
    const RowIndex at = find_row(work, row);
    const int64_t first = (work.references_per_batch ? at.batch * work.queries : 0) + at.query;
    facts.reference = first * (work.references_per_level ? work.levels : 1) * 2;
  }
  return facts;
}

// Place `count` points of each of the warp's rows, from the row's `first_point` on, and call use(slot, index, level,
// point), where index counts all rows' points. All lanes of the warp must call it.
template <typename S, typename Use>
__device__ __forceinline__ void for_points(const Work<S>& work, const Level* levels, const Lane& lane,
                                           const RowFacts<Real<S>>& own, int64_t first_row, int first_point, int count,
                                           Use use) {
  using T = Real<S>;
  const bool fused = work.references != nullptr;
  const int total = work.rows_per_warp * count;
  const float one_per_count = 1.0f / static_cast<float>(count);
  for (int base = 0; base < total; base += kWarp) {
    const int i = base + lane.index;
    const int row = quotient(i, one_per_count);
    RowFacts<T> facts;
    if (fused) {  // from a lane that knows the point's row
      const int source = (row < work.rows_per_warp ? row : 0) * work.group;
      facts.most = __shfl_sync(kAllLanes, own.most, source);
      facts.scale = __shfl_sync(kAllLanes, own.scale, source);
      facts.reference = __shfl_sync(kAllLanes, own.reference, source);
    }
    if (i < total && first_row + row < work.rows) {
      const int k = i - row * count, among = first_point + k;
      const int64_t index = (first_row + row) * work.per_row + among;
      const int number = quotient(among, work.one_per_point);
      const Level level = levels[number];
      T place[2];
      read<T, 2>(work.locations + 2 * index, place);
      Point<T> point;
      point.weight = work.weights[index];
      if (fused) {
        const T* reference = work.references + facts.reference + (work.references_per_level ? 2 * number : 0);
        point.weight = facts.weight(point.weight);
        place_point(level, reference[0], reference[1], place[0], place[1], &point);
      } else {
        place_point(level, place[0], place[1], T(0), T(0), &point);
      }
      use(row * work.pitch + k, index, level, point);
    }
  }
}

// The block's shared memory: the levels, then each warp's slots.
template <typename S>
__device__ __forceinline__ const Level* share_levels(const Work<S>& work, char* memory) {
  Level* levels = reinterpret_cast<Level*>(memory);
  for (int l = static_cast<int>(threadIdx.x); l < work.levels; l += static_cast<int>(blockDim.x)) {
    levels[l] = work.level[l];
  }
  __syncthreads();
  return levels;
}

}  // namespace
