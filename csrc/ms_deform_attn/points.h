// First phase: where every point lies, many points at once, and the softmax of the fused form.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace dinomed {
// Scratch memory of the calling thread, 64-byte aligned, kept between calls while small; null if there is none.
// Defined beside the torch-facing code: the standard library's headers hold inline functions.
void* borrow_scratch(uint64_t bytes);
void return_scratch();
}  // namespace dinomed

namespace {

using dinomed::Inputs;
using dinomed::Piece;
using dinomed::Problem;

inline int64_t rounded_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Hands out pieces of one block of memory. Run first without memory to learn how much is needed.
class Arena {
 public:
  explicit Arena(char* memory) : memory_(memory) {}
  template <typename T>
  T* take(int64_t count) {
    char* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += static_cast<uint64_t>(rounded_up(count * static_cast<int64_t>(sizeof(T)), 64));
    return reinterpret_cast<T*>(piece);
  }
  uint64_t used() const { return used_; }

 private:
  char* memory_;
  uint64_t used_ = 0;
};

// A head's maps in scratch memory: every level with two rows of zeros above and below and two columns of zeros after
// each row, which serve as the next row's left frame. With points clamped to [-2, size] no neighbour needs a test, and
// a neighbour outside is a zero that was read, never a value times zero.
constexpr int kFrame = 2;
// A map without pixels is framed like one of a single pixel, which is zero: then no point needs a test there either.
inline int64_t framed_size(int64_t size, int64_t other) { return size > 0 && other > 0 ? size : 1; }
inline int64_t framed_pixels(int64_t height, int64_t width) {
  return (framed_size(height, width) + 2 * kFrame) * (framed_size(width, height) + kFrame) + kFrame;
}
inline int64_t framed_pitch(const Problem& problem, int64_t level) {
  return framed_size(problem.widths[level], problem.heights[level]) + kFrame;
}

// What a point's place among a piece's heads, levels and points says of its map; padded to whole vectors.
template <typename T>
struct PointTable {
  using Int = typename Lanes<T>::Int;
  int64_t count = 0, padded = 0;
  T *width = nullptr, *height = nullptr, *reference_x = nullptr, *reference_y = nullptr, *softmax = nullptr;
  Int *pitch = nullptr, *base = nullptr;  // of the level in its head's packed maps, in elements

  void take(Arena& arena, const Problem& problem, int64_t heads) {
    count = heads * problem.levels * problem.points;
    padded = rounded_up(count, Lanes<T>::count) + Lanes<T>::count;
    T** const reals[] = {&width, &height, &reference_x, &reference_y, &softmax};
    for (T** array : reals) *array = arena.take<T>(padded);
    Int** const integers[] = {&pitch, &base};
    for (Int** array : integers) *array = arena.take<Int>(padded);
  }

  void fill(const Problem& problem, int64_t row_elements) {
    const int64_t per_head = problem.levels * problem.points;
    for (int64_t i = 0; i < padded; ++i) {
      width[i] = height[i] = T(1);
      reference_x[i] = reference_y[i] = softmax[i] = T(0);
      pitch[i] = base[i] = 0;
    }
    for (int64_t i = 0; i < count; ++i) {
      int64_t start = 0;
      const int64_t level = i % per_head / problem.points;
      for (int64_t l = 0; l < level; ++l) start += framed_pixels(problem.heights[l], problem.widths[l]);
      width[i] = static_cast<T>(framed_size(problem.widths[level], problem.heights[level]));
      height[i] = static_cast<T>(framed_size(problem.heights[level], problem.widths[level]));
      pitch[i] = static_cast<Int>(framed_pitch(problem, level) * row_elements);
      base[i] = static_cast<Int>(start * row_elements);
    }
  }
};

template <typename T>
struct Points {
  IntVec<T> column, row;  // of the upper left neighbour, counted from the frame's corner: 0 to size + 2
  Vec<T> x, y;            // how far the point lies beyond that neighbour, in pixels: 0 to 1, or NaN
  Vec<T> weight;
};

// x * y - z, rounded once or nearly so: the machine's fused multiply-add, or Dekker's product of two halves each.
template <typename T>
inline Vec<T> product_minus(Vec<T> x, Vec<T> y, Vec<T> z) {
#if defined(__FMA__) || defined(__aarch64__)
  return x * y - z;  // contracted by the compiler
#else
  if constexpr (sizeof(T) == 8) return x * y - z;
  const Vec<T> big = splat<T>(T(1e30));  // beyond every map; the halves' factor must not overflow
  x = x > big ? big : x;
  x = x < -big ? -big : x;
  const Vec<T> x_high = x * T(4097) - (x * T(4097) - x), x_low = x - x_high;
  const Vec<T> y_high = y * T(4097) - (y * T(4097) - y), y_low = y - y_high;
  const Vec<T> product = x * y;
  const Vec<T> rest = ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low;
  return (product - z) + rest;
#endif
}

// The neighbour before a coordinate and the way from it, 0 to 1. The way is found from the coordinate's factors again,
// rounded once, so that it keeps its precision on large maps; where it shows that rounding had put the coordinate on
// the other side of a pixel's centre, the neighbour is the next one.
template <typename T>
inline void split(Vec<T> location, Vec<T> offset, Vec<T> size, IntVec<T>* whole, Vec<T>* part) {
  const Vec<T> low = splat<T>(-kFrame);
  Vec<T> clamped = location * size + (offset - T(0.5));
  clamped = clamped > low ? clamped : low;  // NaN goes to the frame too
  clamped = clamped < size ? clamped : size;
  IntVec<T> before = __builtin_convertvector(clamped + T(kFrame), IntVec<T>);
  const Vec<T> centre = __builtin_convertvector(before, Vec<T>) - T(kFrame - 0.5);
  Vec<T> way = product_minus<T>(location, size, centre) + offset;
  const IntVec<T> last = __builtin_convertvector(size, IntVec<T>) + kFrame;
  const IntVec<T> back = (way < T(0)) & (before > 0), on = (way >= T(1)) & (before < last);  // -1 where so
  *whole = before + back - on;
  way += __builtin_convertvector(on - back, Vec<T>);
  way = way < splat<T>(-1) ? splat<T>(-1) : way;  // points at infinity; NaN stays
  *part = way > splat<T>(2) ? splat<T>(2) : way;
}

template <typename T>
inline Vec<T> exponential(Vec<T> x) {
  if constexpr (sizeof(T) == 8) {
    for (int lane = 0; lane < Lanes<T>::count; ++lane) x[lane] = __builtin_exp(x[lane]);
    return x;
  } else {
    // 2^n * exp(r), |r| <= ln(2) / 2, by the Taylor series of exp to the seventh power; below -87 the result is 0.
    const Vec<T> bounded = x < splat<T>(-87) ? splat<T>(-87) : x;
    const Vec<T> shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number
    const Vec<T> n = shifted - 12582912.0f;
    const Vec<T> r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec<T> sum = r * (1.0f / 5040) + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    const IntVec<T> power = (reinterpret_cast<IntVec<T>>(shifted) - 0x4b400000 + 127) << 23;
    const Vec<T> result = sum * reinterpret_cast<Vec<T>>(power);
    return x < splat<T>(-87) ? Vec<T>{} : result;
  }
}

template <typename T, int N>
inline Vec<T> swapped_lanes(Vec<T> x, int step) {
#if defined(__clang__)
  Vec<T> swapped = x;
  for (int lane = 0; lane < N; ++lane) swapped[lane] = x[lane ^ step];
  return swapped;
#else
  IntVec<T> order{};
  for (int lane = 0; lane < N; ++lane) order[lane] = lane ^ step;
  return __builtin_shuffle(x, order);
#endif
}

// Softmax of heads that are 4 points each, whole vectors of heads at once.
inline void softmax_of_four(const float* logits, float* weights, int64_t count) {
  constexpr int n = Lanes<float>::count;
  for (int64_t i = 0; i < count; i += n) {
    const Vec<float> x = load_up_to(logits + i, static_cast<int>(count - i));
    const Vec<float> neighbour = swapped_lanes<float, n>(x, 1);
    Vec<float> most = x > neighbour ? x : neighbour;
    const Vec<float> other = swapped_lanes<float, n>(most, 2);
    most = most > other ? most : other;
    const Vec<float> power = exponential<float>(x - most);
    Vec<float> sum = power + swapped_lanes<float, n>(power, 1);
    sum = sum + swapped_lanes<float, n>(sum, 2);
    store(weights + i, power / sum);
  }
}

template <typename T>
DINOMED_SEPARATE void softmax(const T* logits, T* weights, int64_t heads, int64_t per_head) {
  if constexpr (sizeof(T) == 4) {
    if (per_head == 4) return softmax_of_four(logits, weights, heads * per_head);
  }
  for (int64_t head = 0; head < heads; ++head) {
    const T* row = logits + head * per_head;
    T most = row[0], sum = 0;
    for (int64_t i = 1; i < per_head; ++i) most = row[i] > most ? row[i] : most;
    T* result = weights + head * per_head;
    for (int64_t i = 0; i < per_head; ++i) result[i] = row[i] - most;
    // A vector may reach into the next head's weights, which are written after, or into the padding.
    for (int64_t i = 0; i < per_head; i += Lanes<T>::count) store(result + i, exponential<T>(load(result + i)));
    for (int64_t i = 0; i < per_head; ++i) sum += result[i];
    for (int64_t i = 0; i < per_head; ++i) result[i] /= sum;
  }
}

constexpr int64_t kAhead = 12;  // queries

// The points of some queries' heads, as many at once as a vector holds: use(query, first, Points), with the query
// counted from the first of these.
template <typename T, typename Use>
inline void for_points(const Problem& problem, const Inputs& in, const PointTable<T>& given, const Piece& piece,
                       int64_t first_query, int64_t queries, Use use) {
  constexpr int n = Lanes<T>::count, line = 64 / sizeof(T);
  const PointTable<T> table = given;  // copies, so that no store makes the compiler read them again
  const int64_t points = problem.points, levels = problem.levels, heads = piece.heads;
  const bool fused = in.references != nullptr, many = fused && in.references_per_level && levels > 1;
  const int64_t query_stride = problem.heads * levels * points;
  const int64_t query_index = piece.batch * problem.queries + first_query;
  const int64_t first = query_index * query_stride + piece.first_head * levels * points;
  const T* places = static_cast<const T*>(in.locations) + 2 * first;
  const T* all_weights = static_cast<const T*>(in.weights) + first;
  const int64_t reference_stride = 2 * (many ? levels : 1);
  const T* reference = static_cast<const T*>(in.references);
  if (fused) reference += (in.references_per_batch ? query_index : first_query) * reference_stride;
  for (int64_t q = 0; q < queries; ++q, places += 2 * query_stride, all_weights += query_stride) {
    const T* weights = all_weights;
    // One query's points of some heads are a few cache lines, the next query's are far behind them: fetch them early.
    for (int64_t i = 0; i < 2 * table.count; i += line) __builtin_prefetch(places + kAhead * 2 * query_stride + i);
    for (int64_t i = 0; i < table.count; i += line) __builtin_prefetch(all_weights + kAhead * query_stride + i);
    Vec<T> reference_x{}, reference_y{};
    if (fused) {
      softmax(weights, table.softmax, heads, levels * points);
      weights = table.softmax;
      reference_x = splat(reference[0]);
      reference_y = splat(reference[1]);
      for (int64_t i = 0; many && i < table.count; ++i) {
        const int64_t level = i / points % levels;
        table.reference_x[i] = reference[2 * level];
        table.reference_y[i] = reference[2 * level + 1];
      }
      reference += reference_stride;
    }
    for (int64_t i = 0; i < table.count; i += n) {
      Points<T> at;
      Vec<T> low, high, x, y;
      if (table.count - i >= n) {
        low = load(places + 2 * i);
        high = load(places + 2 * i + n);
        at.weight = load(weights + i);
      } else {
        const int left = static_cast<int>(table.count - i);
        low = load_up_to(places + 2 * i, 2 * left);
        high = 2 * left > n ? load_up_to(places + 2 * i + n, 2 * left - n) : Vec<T>{};
        at.weight = load_up_to(weights + i, left);
      }
      deinterleave<T>(low, high, &x, &y);
      const Vec<T> width = load(table.width + i), height = load(table.height + i);
      if (!fused) {
        split<T>(x, Vec<T>{}, width, &at.column, &at.x);
        split<T>(y, Vec<T>{}, height, &at.row, &at.y);
      } else {
        split<T>(many ? load(table.reference_x + i) : reference_x, x, width, &at.column, &at.x);
        split<T>(many ? load(table.reference_y + i) : reference_y, y, height, &at.row, &at.y);
      }
      use(q, i, at);
    }
  }
}

}  // namespace
