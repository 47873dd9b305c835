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
      const int64_t height = problem.heights[l], width = problem.widths[l], pitch = width + kFrame;
      for (int64_t y = 0; y < height; ++y) use(from + y * width, (to + (y + kFrame) * pitch + kFrame) * row, width);
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

  void put(int64_t i, const Points<T>& at, IntVec<T> base, IntVec<T> pitch, int64_t row) {
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

// One query and head, `Vectors` vectors of channels: the sum over its points. P is the number of points if there is
// one level and that number is known, else 0.
template <typename T, int Vectors, int P>
inline void gather(const Problem& problem, const T* map, const Taps<T>& taps, int64_t first, const int64_t* pitches,
                   int64_t row, Vec<T>* sum) {
  constexpr int n = Lanes<T>::count;
  const int64_t levels = P > 0 ? 1 : problem.levels, points = P > 0 ? P : problem.points;
  for (int v = 0; v < Vectors; ++v) sum[v] = Vec<T>{};
  for (int64_t l = 0; l < levels; ++l) {
    const int64_t pitch = pitches[l];
    for (int64_t p = 0; p < points; ++p, ++first) {
      const T* upper = map + taps.offset[first];
      const T* lower = upper + pitch;
      for (int v = 0; v < Vectors; ++v) {
        sum[v] += taps.weight[0][first] * load(upper + v * n);
        sum[v] += taps.weight[1][first] * load(upper + row + v * n);
        sum[v] += taps.weight[2][first] * load(lower + v * n);
        sum[v] += taps.weight[3][first] * load(lower + row + v * n);
      }
    }
  }
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

template <typename T, typename S, int Vectors, int P>
DINOMED_SEPARATE void gather_block(const Problem& problem, const ForwardScratch<T>& scratch, S* output,
                                   const Piece& piece, int64_t first_query, int64_t queries, int64_t channel) {
  constexpr int n = Lanes<T>::count;
  const int64_t per_head = problem.levels * problem.points;
  for (int64_t q = 0; q < queries; ++q) {
    S* target = output +
                ((piece.batch * problem.queries + first_query + q) * problem.heads + piece.first_head) * problem.depth +
                channel;
    for (int64_t h = 0; h < piece.heads; ++h, target += problem.depth) {
      Vec<T> sum[Vectors];
      gather<T, Vectors, P>(problem, scratch.maps.data + h * scratch.maps.head + channel, scratch.taps,
                            q * scratch.table.padded + h * per_head, scratch.pitches, scratch.maps.row, sum);
      for (int v = 0; v < Vectors; ++v) {
        store_up_to(target + v * n, sum[v], static_cast<int>(problem.depth - channel) - v * n);
      }
    }
  }
}

template <typename T, typename S, int Vectors>
inline void gather_channels(const Problem& problem, const ForwardScratch<T>& scratch, S* output, const Piece& piece,
                            int64_t first_query, int64_t queries, int64_t channel) {
  if (problem.levels == 1 && problem.points == 4) {
    gather_block<T, S, Vectors, 4>(problem, scratch, output, piece, first_query, queries, channel);
  } else {
    gather_block<T, S, Vectors, 0>(problem, scratch, output, piece, first_query, queries, channel);
  }
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
  for (int64_t l = 0; l < problem.levels; ++l) scratch.pitches[l] = (problem.widths[l] + kFrame) * scratch.maps.row;
  const int64_t end = piece.first_query + piece.queries;
  for (int64_t first = piece.first_query; first < end; first += scratch.block) {
    const int64_t queries = end - first < scratch.block ? end - first : scratch.block;
    for (int64_t q = 0; q < queries; ++q) {
      for_points<T>(problem, in, scratch.table, piece, first + q, [&](int64_t i, const Points<T>& points) {
        scratch.taps.put(q * scratch.table.padded + i, points, load_int<T>(scratch.table.base + i),
                         load_int<T>(scratch.table.pitch + i), scratch.maps.row);
      });
    }
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
