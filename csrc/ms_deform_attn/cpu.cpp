// The CPU kernels of dinomed::ms_deform_attn and its relatives, registered through LibTorch's stable ABI.
//
// The operators themselves (schemas, shape functions, derivatives) are defined in Python, in dinomed/ops.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"

namespace dinomed {

namespace {

// Memory that a thread keeps between calls: fresh pages would cost more than the work on a small image.
struct Scratch {
  void* memory = nullptr;
  uint64_t bytes = 0;
  void drop() {
    std::free(memory);
    memory = nullptr;
    bytes = 0;
  }
  ~Scratch() { drop(); }
};
thread_local Scratch thread_scratch;
constexpr uint64_t kKeptBytes = uint64_t{16} << 20;

}  // namespace

void* borrow_scratch(uint64_t bytes) {
  if (bytes > thread_scratch.bytes) {
    thread_scratch.drop();
    const uint64_t rounded = (bytes + 4095) / 4096 * 4096;
    thread_scratch.memory = std::aligned_alloc(64, rounded);
    thread_scratch.bytes = thread_scratch.memory == nullptr ? 0 : rounded;
  }
  return thread_scratch.memory;
}

void return_scratch() {
  if (thread_scratch.bytes > kKeptBytes) thread_scratch.drop();
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool runs_here(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_fma = __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (std::strcmp(name, "avx2") == 0) return has_fma && __builtin_cpu_supports("avx2");
  if (std::strcmp(name, "avx512") == 0) {
    return has_fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return std::strcmp(name, "portable") == 0;
}

const Kernels* find_kernels(const char* name) {
  const Kernels* const all[] = {
#if defined(__x86_64__)
      &avx512_kernels, &avx2_kernels,
#endif
      &portable_kernels};
  for (const Kernels* kernels : all) {
    if ((name == nullptr || std::strcmp(name, kernels->name) == 0) && runs_here(kernels->name)) return kernels;
  }
  return nullptr;
}

std::atomic<const Kernels*> chosen_kernels{find_kernels(nullptr)};

ValueType value_type(const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Float: return ValueType::float32;
    case ScalarType::Double: return ValueType::float64;
    case ScalarType::BFloat16: return ValueType::bfloat16;
    case ScalarType::Half: return ValueType::float16;
    default: STD_TORCH_CHECK(false, "ms_deform_attn: value must be float32, float64, bfloat16 or float16");
  }
}

ScalarType real_type(ValueType type) { return type == ValueType::float64 ? ScalarType::Double : ScalarType::Float; }

// Contiguous and of that type, copied only if it is not.
Tensor as_contiguous(const Tensor& tensor, ScalarType type) {
  const Tensor typed = tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

// A call whose shapes have been found to belong together.
struct Call {
  std::vector<int64_t> heights, widths;
  Tensor value, locations, weights;
  std::optional<Tensor> references;
  Problem problem{};
  Inputs inputs{};

  Call(const Tensor& value_in, std::vector<int64_t> heights_in, std::vector<int64_t> widths_in,
       const Tensor& locations_in, const Tensor& weights_in, const Tensor* references_in)
      : heights(std::move(heights_in)), widths(std::move(widths_in)) {
    STD_TORCH_CHECK(value_in.dim() == 4 && locations_in.dim() == 6 && weights_in.dim() == 5,
                    "ms_deform_attn: value, points and weights must have 4, 6 and 5 dimensions");
    const ValueType type = value_type(value_in);
    value = as_contiguous(value_in, value_in.scalar_type());
    locations = as_contiguous(locations_in, real_type(type));
    weights = as_contiguous(weights_in, real_type(type));
    problem = {type,           value.size(0),   value.size(1),   value.size(2),
               value.size(3),  weights.size(1), weights.size(3), weights.size(4),
               heights.data(), widths.data()};
    check_shapes();
    inputs = {value.const_data_ptr(), locations.const_data_ptr(), weights.const_data_ptr(), nullptr, false, false};
    if (references_in != nullptr) add_references(*references_in);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void check_shapes() const {
    for (int64_t d = 0; d < 5; ++d) {
      STD_TORCH_CHECK(locations.size(d) == weights.size(d), "ms_deform_attn: points and weights differ in dimension ",
                      d);
    }
    STD_TORCH_CHECK(locations.size(5) == 2, "ms_deform_attn: a point must have 2 coordinates, not ", locations.size(5));
    STD_TORCH_CHECK(weights.size(0) == problem.batch && weights.size(2) == problem.heads,
                    "ms_deform_attn: value and weights differ in batch or in heads");
    STD_TORCH_CHECK(static_cast<int64_t>(heights.size()) == problem.levels && widths.size() == heights.size(),
                    "ms_deform_attn: one height and one width are needed for each of ", problem.levels, " levels");
    int64_t pixels = 0;
    for (size_t l = 0; l < heights.size(); ++l) {
      STD_TORCH_CHECK(heights[l] >= 0 && widths[l] >= 0, "ms_deform_attn: a map's height and width cannot be negative");
      pixels += heights[l] * widths[l];
    }
    STD_TORCH_CHECK(pixels == problem.pixels, "ms_deform_attn: the spatial shapes hold ", pixels,
                    " pixels but value has ", problem.pixels);
  }

  void add_references(const Tensor& given) {
    STD_TORCH_CHECK(given.dim() == 4 && given.size(1) == problem.queries && given.size(3) == 2 &&
                        (given.size(0) == 1 || given.size(0) == problem.batch) &&
                        (given.size(2) == 1 || given.size(2) == problem.levels),
                    "ms_deform_attn: reference points must be (B or 1, Q, L or 1, 2)");
    references = as_contiguous(given, real_type(problem.type));
    inputs.references = references->const_data_ptr();
    inputs.references_per_batch = given.size(0) > 1;
    inputs.references_per_level = given.size(2) > 1;
  }

  bool is_empty() const {
    return problem.batch * problem.queries * problem.heads * problem.depth * problem.levels * problem.points == 0;
  }

  int64_t packed_elements_per_head() const {
    int64_t pixels = 0;
    for (size_t l = 0; l < heights.size(); ++l) pixels += (heights[l] + 4) * (widths[l] + 2) + 2;
    return pixels * ((problem.depth + 15) / 16 * 16);
  }

  // Packing reads and writes every pixel once; a point reads four. Places in packed maps are 32-bit numbers.
  bool packs() const {
    return problem.queries * problem.levels * problem.points * 4 >= problem.pixels &&
           packed_elements_per_head() < (int64_t{1} << 31);
  }
};

// How a call is cut into pieces; the results do not depend on it.
struct Cut {
  int64_t head_groups, heads_per_group, query_groups, queries_per_group;

  Cut(const Call& call, bool may_cut_queries) {
    const Problem& problem = call.problem;
    const int64_t threads = torch::stable::get_num_threads();
    // Four heads share the cache lines of points and weights; their maps should stay in the second-level cache.
    const int64_t bytes = call.packed_elements_per_head() * (problem.type == ValueType::float64 ? 8 : 4);
    const int64_t together = std::clamp<int64_t>((int64_t{1} << 20) / (bytes + 1), 1, 4);
    head_groups = (problem.heads + together - 1) / together;
    while (head_groups < problem.heads && problem.batch * head_groups % threads != 0) ++head_groups;
    heads_per_group = (problem.heads + head_groups - 1) / head_groups;
    head_groups = (problem.heads + heads_per_group - 1) / heads_per_group;
    const int64_t pieces = problem.batch * head_groups;
    query_groups = may_cut_queries ? std::clamp<int64_t>((threads + pieces - 1) / pieces, 1, problem.queries) : 1;
    queries_per_group = (problem.queries + query_groups - 1) / query_groups;
  }

  int64_t pieces(const Problem& problem) const { return problem.batch * head_groups * query_groups; }

  Piece piece(const Problem& problem, int64_t index) const {
    const int64_t first_query = index % query_groups * queries_per_group;
    const int64_t first_head = index / query_groups % head_groups * heads_per_group;
    return {index / query_groups / head_groups, first_head, std::min(heads_per_group, problem.heads - first_head),
            first_query, std::clamp<int64_t>(problem.queries - first_query, 0, queries_per_group)};
  }
};

template <typename Work>
void run_pieces(const Call& call, bool may_cut_queries, const Work& work) {
  const Cut cut(call, may_cut_queries);
  std::atomic<bool> done{true};
  torch::stable::parallel_for(0, cut.pieces(call.problem), 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      if (!work(cut.piece(call.problem, index))) done = false;
    }
  });
  STD_TORCH_CHECK(done, "ms_deform_attn: not enough memory for a copy of one head's maps");
}

Tensor run_forward(const Call& call) {
  const Problem& problem = call.problem;
  const int64_t sizes[] = {problem.batch, problem.queries, problem.heads * problem.depth};
  if (call.is_empty()) return torch::stable::new_zeros(call.value, {sizes, 3});
  Tensor output = torch::stable::new_empty(call.value, {sizes, 3});
  void* target = output.mutable_data_ptr();
  const Kernels& kernels = *chosen_kernels.load();
  const bool packed = call.packs();
  run_pieces(call, true,
             [&](const Piece& piece) { return kernels.forward(problem, call.inputs, target, piece, packed); });
  return output;
}

Tensor new_like(const Tensor& tensor, std::optional<ScalarType> type, bool zero) {
  return zero ? torch::stable::new_zeros(tensor, tensor.sizes(), type)
              : torch::stable::new_empty(tensor, tensor.sizes(), type);
}

// Gradients of value, points and weights, contiguous, of the types that the operator was given.
std::tuple<Tensor, Tensor, Tensor> run_backward(const Call& call, const Tensor& grad_output, ScalarType points_type,
                                                ScalarType weights_type) {
  const Problem& problem = call.problem;
  STD_TORCH_CHECK(grad_output.dim() == 3 && grad_output.size(0) == problem.batch &&
                      grad_output.size(1) == problem.queries && grad_output.size(2) == problem.heads * problem.depth,
                  "ms_deform_attn: the gradient must have the output's shape (B, Q, M * D)");
  const ScalarType value_scalar = call.value.scalar_type(), real = real_type(problem.type);
  const Tensor gradient = as_contiguous(grad_output, value_scalar);
  const bool empty = call.is_empty(), packed = call.packs();
  Tensor value = new_like(call.value, packed ? value_scalar : real, empty || !packed);
  Tensor points = new_like(call.locations, std::nullopt, empty), weights = new_like(call.weights, std::nullopt, empty);
  if (!empty) {
    const Gradients gradients{gradient.const_data_ptr(), value.mutable_data_ptr(), points.mutable_data_ptr(),
                              weights.mutable_data_ptr()};
    const Kernels& kernels = *chosen_kernels.load();
    run_pieces(call, false,
               [&](const Piece& piece) { return kernels.backward(problem, call.inputs, gradients, piece, packed); });
  }
  return {as_contiguous(value, value_scalar), as_contiguous(points, points_type), as_contiguous(weights, weights_type)};
}

// These kernels give the same bits in every run, whether asked to (the last argument) or not.
Tensor forward(Tensor value, std::vector<int64_t> heights, std::vector<int64_t> widths, Tensor locations,
               Tensor weights, bool /*deterministic*/) {
  return run_forward(Call(value, std::move(heights), std::move(widths), locations, weights, nullptr));
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor value, std::vector<int64_t> heights,
                                            std::vector<int64_t> widths, Tensor locations, Tensor weights,
                                            bool /*deterministic*/) {
  return run_backward(Call(value, std::move(heights), std::move(widths), locations, weights, nullptr), grad_output,
                      locations.scalar_type(), weights.scalar_type());
}

Tensor fused_forward(Tensor value, std::vector<int64_t> heights, std::vector<int64_t> widths, Tensor references,
                     Tensor offsets, Tensor logits, bool /*deterministic*/) {
  return run_forward(Call(value, std::move(heights), std::move(widths), offsets, logits, &references));
}

std::tuple<Tensor, Tensor, Tensor> fused_backward(Tensor grad_output, Tensor value, std::vector<int64_t> heights,
                                                  std::vector<int64_t> widths, Tensor references, Tensor offsets,
                                                  Tensor logits, bool /*deterministic*/) {
  return run_backward(Call(value, std::move(heights), std::move(widths), offsets, logits, &references), grad_output,
                      offsets.scalar_type(), logits.scalar_type());
}

}  // namespace
}  // namespace dinomed

STABLE_TORCH_LIBRARY_IMPL(dinomed, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&dinomed::forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&dinomed::backward));
  library.impl("ms_deform_attn_fused", TORCH_BOX(&dinomed::fused_forward));
  library.impl("ms_deform_attn_fused_backward", TORCH_BOX(&dinomed::fused_backward));
}

// The instruction set in use. With a name, choose that one first; null if there is no such one or it cannot run here.
extern "C" __attribute__((visibility("default"))) const char* dinomed_cpu_kernel(const char* name) {
  if (name != nullptr) {
    const dinomed::Kernels* kernels = dinomed::find_kernels(name);
    if (kernels == nullptr) return nullptr;
    dinomed::chosen_kernels = kernels;
  }
  return dinomed::chosen_kernels.load()->name;
}
