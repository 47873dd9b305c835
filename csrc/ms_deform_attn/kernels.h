// What the torch-facing file and the kernels, compiled once per instruction set, know of each other.
//
// Nothing here may be an inline function: a copy compiled for AVX-512 could otherwise be the one the linker keeps.
#pragma once

#include <cstdint>

namespace dinomed {

enum class ValueType { float32, float64, bfloat16, float16 };

// Sizes of one call. Sums, points and weights are float32 (float64 for float64 values): "real" below.
struct Problem {
  ValueType type;
  int64_t batch, pixels, heads, depth, queries, levels, points;
  const int64_t* heights;
  const int64_t* widths;
};

// Contiguous arrays. Plain form: locations in [0, 1] and weights. Fused form (references is not null): offsets in
// pixels, logits (softmax over a head's points of all levels) and reference points in [0, 1].
struct Inputs {
  const void* value;       // (B, S, M, D), ValueType
  const void* locations;   // (B, Q, M, L, P, 2) real: locations, or offsets
  const void* weights;     // (B, Q, M, L, P) real: weights, or logits
  const void* references;  // (B or 1, Q, L or 1, 2) real, or null
  bool references_per_batch, references_per_level;
};

// A piece of work that one thread does alone: some neighbouring heads of one batch element, some queries.
struct Piece {
  int64_t batch, first_head, heads, first_query, queries;
};

struct Gradients {
  const void* output;  // (B, Q, M * D), ValueType: the gradient that comes in
  void* value;         // (B, S, M, D): ValueType if packed, else real and zero at the start
  void* locations;     // (B, Q, M, L, P, 2) real
  void* weights;       // (B, Q, M, L, P) real
};

struct Kernels {
  const char* name;
  // `output` is (B, Q, M * D), ValueType. `packed` chooses between copying a head's maps first, framed by zeros, and
  // reading them where they are. Both return false if there is no memory for their scratch space.
  bool (*forward)(const Problem&, const Inputs&, void* output, const Piece&, bool packed);
  // A piece holds every query, since the gradients of its heads' values are summed over all of them.
  bool (*backward)(const Problem&, const Inputs&, const Gradients&, const Piece&, bool packed);
};

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

}  // namespace dinomed
