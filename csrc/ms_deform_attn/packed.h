// Second phase on a copy of the heads' maps, framed by zeros: nothing but reading rows.
#pragma once

#include "points.h"

namespace {

// The maps of some heads in scratch memory, each pixel's channels padded to whole vectors.
template <typename T>
struct PackedMaps {
  int64_t row = 0, head = 0;  // elements of a pixel and of a head
  T* data = nullptr;

  void take(Arena& arena, const Problem& problem, int64_t heads) {
    row = rounded_up(problem.depth, Lanes<T>::count);
    int64_t pixels = 0;
    for (int64_t l = 0; l < problem.levels; ++l) pixels += framed_pixels(problem.heights[l], problem.widths[l]);
    head = pixels * row;
    data = arena.take<T>(head * heads);
  }

  // Call use(first pixel of the row in value, first element of the row in a head's map) for every row of every level.
  template <typename Use>
  void for_rows(const Problem& problem, Use use) const {
    int64_t from = 0, to = 0;
    for (int64_t l = 0; l < problem.levels; ++l) {
      const int64_t height = problem.heights[l], width = problem.widths[l], pitch = framed_pitch(problem, l);
      for (int64_t y = 0; width > 0 && y < height; ++y)
        use(from + y * width, (to + (y + kFrame) * pitch + kFrame) * row, width);
      from += height * width;
      to += framed_pixels(height, width);
    }
  }

  template <typename S>
  DINOMED_SEPARATE void fill(const Problem& problem, const S* value, const Piece& piece) {
    clear_frames(problem, piece.heads);
    const int depth = static_cast<int>(problem.depth);
    for_rows(problem, [&](int64_t from, int64_t to, int64_t width) {
      for (int64_t x = 0; x < width; ++x) {
        const S* source =
            value + ((piece.batch * problem.pixels + from + x) * problem.heads + piece.first_head) * depth;
        for (int64_t h = 0; h < piece.heads; ++h, source += depth) {
          T* target = data + h * head + to + x * row;
          for (int d = 0; d < depth; d += Lanes<T>::count) store(target + d, load_up_to(source + d, depth - d));
        }
      }
    });
  }

  template <typename S>
  DINOMED_SEPARATE void copy_out(const Problem& problem, S* value, const Piece& piece) const {
    const int depth = static_cast<int>(problem.depth);
    for_rows(problem, [&](int64_t from, int64_t to, int64_t width) {
      for (int64_t x = 0; x < width; ++x) {
        S* target = value + ((piece.batch * problem.pixels + from + x) * problem.heads + piece.first_head) * depth;
        for (int64_t h = 0; h < piece.heads; ++h, target += depth) {
          const T* source = data + h * head + to + x * row;
          for (int d = 0; d < depth; d += Lanes<T>::count) store_up_to(target + d, load(source + d), depth - d);
        }
      }
    });
  }

 private:
  DINOMED_SEPARATE void clear_frames(const Problem& problem, int64_t heads) {
    for (int64_t h = 0; h < heads; ++h) {
      int64_t end = 0;  // everything between two rows is frame
      T* map = data + h * head;
      for_rows(problem, [&](int64_t, int64_t to, int64_t width) {
        std::memset(map + end, 0, sizeof(T) * static_cast<uint64_t>(to - end));
        end = to + width * row;
      });
      std::memset(map + end, 0, sizeof(T) * static_cast<uint64_t>(head - end));
    }
  }
};

// What the first phase leaves for the second: where a point's upper left neighbour lies, and four weights.
template <typename T>
struct Taps {
  using Int = typename Lanes<T>::Int;
  Int* offset = nullptr;  // in elements of a head's packed maps
  T* weight[4] = {};      // of the neighbours: upper left, upper right, lower left, lower right

  void take(Arena& arena, int64_t count) {
    offset = arena.take<Int>(count);
    for (T*& array : weight) array = arena.take<T>(count);
  }

  void put(int64_t i, const Points<T>& at, IntVec<T> base, IntVec<T> pitch, int64_t row) const {
    const IntVec<T> place = base + at.row * pitch + at.column * static_cast<Int>(row);
    std::memcpy(offset + i, &place, sizeof(place));
    const Vec<T> lower = at.weight * at.y, upper = at.weight - lower;
    const Vec<T> upper_right = upper * at.x, lower_right = lower * at.x;
    store(weight[0] + i, upper - upper_right);
    store(weight[1] + i, upper_right);
    store(weight[2] + i, lower - lower_right);
    store(weight[3] + i, lower_right);
  }
};

template <typename T>
inline IntVec<T> load_int(const typename Lanes<T>::Int* from) {
  IntVec<T> x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

template <typename T>
struct ForwardScratch {
  PointTable<T> table;
  PackedMaps<T> maps;
  Taps<T> taps;
  int64_t* pitches = nullptr;
  int64_t block = 1;  // queries whose points are found before any is read

  ForwardScratch(Arena& arena, const Problem& problem, int64_t heads) {
    table.take(arena, problem, heads);
    maps.take(arena, problem, heads);
    block = 256 / table.padded > 0 ? 256 / table.padded : 1;
    taps.take(arena, block * table.padded);
    pitches = arena.take<int64_t>(problem.levels);
  }
};

// One point: its four neighbours' rows, weighted, on top of two sums. All pointers are to the point's own.
template <typename T, int Vectors>
inline __attribute__((always_inline)) void add_point(const T* upper, int64_t pitch, int64_t row, T upper_left,
                                                     T upper_right, T lower_left, T lower_right, Vec<T>* sum) {
  constexpr int n = Lanes<T>::count;
  const T* lower = upper + pitch;
  for (int v = 0; v < Vectors; ++v) sum[v] += upper_left * load(upper + v * n);
  for (int v = 0; v < Vectors; ++v) sum[v] += upper_right * load(upper + row + v * n);
  for (int v = 0; v < Vectors; ++v) sum[v] += lower_left * load(lower + v * n);
  for (int v = 0; v < Vectors; ++v) sum[v] += lower_right * load(lower + row + v * n);
}

// Some queries, every head, `Vectors` vectors of channels. `Four`: there is one level with four points a head.
template <typename T, typename S, int Vectors, bool Four>
DINOMED_SEPARATE void gather_block(const Problem& problem, const ForwardScratch<T>& scratch, S* output,
                                   const Piece& piece, int64_t first_query, int64_t queries, int64_t channel) {
  constexpr int n = Lanes<T>::count, line = 64 / sizeof(S);
  // Copies, so that no store makes the compiler read them again.
  const int64_t levels = problem.levels, points = problem.points, per_head = levels * points, heads = piece.heads;
  const int64_t depth = problem.depth, row = scratch.maps.row, head_elements = scratch.maps.head;
  const int64_t padded = scratch.table.padded, query_stride = problem.heads * depth;
  const int64_t* pitches = scratch.pitches;
  const int64_t first_pitch = pitches[0];
  const T* maps = scratch.maps.data + channel;
  const auto* offsets = scratch.taps.offset;
  const T *upper_left = scratch.taps.weight[0], *upper_right = scratch.taps.weight[1];
  const T *lower_left = scratch.taps.weight[2], *lower_right = scratch.taps.weight[3];
  const int last = static_cast<int>(depth - channel) - (Vectors - 1) * n;  // channels of the last vector
  S* query_target = output + ((piece.batch * problem.queries + first_query) * problem.heads + piece.first_head) * depth;
  for (int64_t q = 0; q < queries; ++q, query_target += query_stride) {
    int64_t i = q * padded;
    S* target = query_target + channel;
    const T* map = maps;
    for (int64_t d = 0; d < heads * depth; d += line) __builtin_prefetch(query_target + kAhead * query_stride + d, 1);
    for (int64_t h = 0; h < heads; ++h, target += depth, map += head_elements) {
      Vec<T> sum[Vectors] = {};
      if constexpr (Four) {
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p, ++i) {
          add_point<T, Vectors>(map + offsets[i], first_pitch, row, upper_left[i], upper_right[i], lower_left[i],
                                lower_right[i], sum);
        }
      } else {
        const int64_t end = i + per_head;
        for (int64_t level = 0, left = points; i < end; ++i) {
          add_point<T, Vectors>(map + offsets[i], pitches[level], row, upper_left[i], upper_right[i], lower_left[i],
                                lower_right[i], sum);
          if (--left == 0) {
            ++level;
            left = points;
          }
        }
      }
      for (int v = 0; v < Vectors - 1; ++v) store_value(target + v * n, sum[v]);
      store_up_to(target + (Vectors - 1) * n, sum[Vectors - 1], last);
    }
  }
}

template <typename T, typename S, int Vectors>
inline void gather_channels(const Problem& problem, const ForwardScratch<T>& scratch, S* output, const Piece& piece,
                            int64_t first_query, int64_t queries, int64_t channel) {
  if (problem.levels == 1 && problem.points == 4) {
    gather_block<T, S, Vectors, true>(problem, scratch, output, piece, first_query, queries, channel);
  } else {
    gather_block<T, S, Vectors, false>(problem, scratch, output, piece, first_query, queries, channel);
  }
}

template <typename T>
DINOMED_SEPARATE void find_block(const Problem& problem, const Inputs& in, const ForwardScratch<T>& scratch,
                                 const Piece& piece, int64_t first_query, int64_t queries) {
  const PointTable<T> table = scratch.table;
  const Taps<T> taps = scratch.taps;
  const int64_t row = scratch.maps.row;
  for_points<T>(problem, in, table, piece, first_query, queries, [=](int64_t q, int64_t i, const Points<T>& points) {
    taps.put(q * table.padded + i, points, load_int<T>(table.base + i), load_int<T>(table.pitch + i), row);
  });
}

template <typename T, typename S>
bool forward_packed(const Problem& problem, const Inputs& in, S* output, const Piece& piece) {
  Arena measure(nullptr);
  ForwardScratch<T> sized(measure, problem, piece.heads);
  char* memory = static_cast<char*>(dinomed::borrow_scratch(measure.used()));
  if (memory == nullptr) return false;
  Arena arena(memory);
  ForwardScratch<T> scratch(arena, problem, piece.heads);
  scratch.table.fill(problem, scratch.maps.row);
  scratch.maps.fill(problem, static_cast<const S*>(in.value), piece);
  for (int64_t l = 0; l < problem.levels; ++l) scratch.pitches[l] = framed_pitch(problem, l) * scratch.maps.row;
  const int64_t end = piece.first_query + piece.queries;
  for (int64_t first = piece.first_query; first < end; first += scratch.block) {
    const int64_t queries = end - first < scratch.block ? end - first : scratch.block;
    find_block(problem, in, scratch, piece, first, queries);
    constexpr int n = Lanes<T>::count;
    for (int64_t channel = 0; channel < problem.depth; channel += 4 * n) {
      switch (rounded_up(problem.depth - channel, n) / n) {
        case 1: gather_channels<T, S, 1>(problem, scratch, output, piece, first, queries, channel); break;
        case 2: gather_channels<T, S, 2>(problem, scratch, output, piece, first, queries, channel); break;
        case 3: gather_channels<T, S, 3>(problem, scratch, output, piece, first, queries, channel); break;
        default: gather_channels<T, S, 4>(problem, scratch, output, piece, first, queries, channel); break;
      }
    }
  }
  dinomed::return_scratch();
  return true;
}

}  // namespace
