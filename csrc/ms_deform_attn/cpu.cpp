// The CPU kernels of dinomed::ms_deform_attn and its relatives, registered through LibTorch's stable ABI.
//
// The operators themselves (schemas, shape functions, derivatives) are defined in Python, in dinomed/ops.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "call.h"

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

int64_t packed_elements_per_head(const Call& call) {
  int64_t pixels = 0;
  for (size_t l = 0; l < call.heights.size(); ++l) {
    if (call.heights[l] > 0 && call.widths[l] > 0) pixels += (call.heights[l] + 4) * (call.widths[l] + 2) + 2;
  }
  return pixels * ((call.problem.depth + 15) / 16 * 16);
}

// Packing reads and writes every pixel once; a point reads four. Places in packed maps are 32-bit numbers.
bool packs(const Call& call) {
  return call.problem.queries * call.problem.levels * call.problem.points * 4 >= call.problem.pixels &&
         packed_elements_per_head(call) < (int64_t{1} << 31);
}

constexpr int64_t kMapBytesOfPiece = int64_t{8} << 20;

// How a call is cut into pieces; the results do not depend on it.
struct Cut {
  int64_t head_groups, heads_per_group, query_groups, queries_per_group;

  Cut(const Call& call, bool may_cut_queries) {
    const Problem& problem = call.problem;
    const int64_t threads = torch::stable::get_num_threads();
    // Heads together share the pages and cache lines of points, weights and outputs, which counts for more than maps
    // that fit into the second-level cache: queries that follow one another read places near one another.
    const int64_t bytes = packed_elements_per_head(call) * (problem.type == ValueType::float64 ? 8 : 4);
    const int64_t together = std::clamp<int64_t>(kMapBytesOfPiece / (bytes + 1), 1, problem.heads);
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
  const bool packed = packs(call);
  run_pieces(call, true,
             [&](const Piece& piece) { return kernels.forward(problem, call.inputs, target, piece, packed); });
  return output;
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
  const bool empty = call.is_empty(), packed = packs(call);
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
