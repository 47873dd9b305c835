// The CUDA kernels of dinomed::ms_deform_attn and its relatives, registered through LibTorch's stable ABI.
//
// Compiled as C++ instead, the kernels run on the CPU, one thread after the other, for tests.
#include "backward.cuh"
#include "call.h"
#include "deterministic.cuh"
#include "forward.cuh"

#if defined(__CUDACC__)
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include <algorithm>
#include <string>
#include <type_traits>

namespace dinomed {
namespace {

#if defined(__CUDACC__)
// The device of a call's tensors, made the current one, and its current stream.
class Device {
 public:
  explicit Device(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), reinterpret_cast<void**>(&stream_)));
  }

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
              const Arguments&... arguments) const {
    // The kernels go on in steps of the grid where a grid cannot be as large as that.
    const dim3 grid(static_cast<unsigned>(std::min(blocks, int64_t{1} << 30)));
    kernel<<<grid, threads, static_cast<size_t>(shared_bytes), stream_>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};
#else
using Device = ::EmulatedDevice;
#endif

// Wide reads need addresses that are multiples of 16, which a contiguous part of a larger tensor may lack.
void align(Tensor* tensor, const void** address) {
  if (reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % 16 != 0) *tensor = torch::stable::clone(*tensor);
  *address = tensor->const_data_ptr();
}

void check(const Call& call) {
  const Tensor* const others[] = {&call.locations, &call.weights, call.references ? &*call.references : nullptr};
  for (const Tensor* other : others) {
    STD_TORCH_CHECK(other == nullptr || (other->is_cuda() == call.value.is_cuda() &&
                                         other->get_device_index() == call.value.get_device_index()),
                    "ms_deform_attn: all tensors must be on the device of value");
  }
  const Problem& problem = call.problem;
  STD_TORCH_CHECK(problem.levels <= kMaxLevels, "ms_deform_attn: more than ", kMaxLevels, " levels");
  STD_TORCH_CHECK(problem.levels * problem.points < (1 << 20), "ms_deform_attn: 2^20 points of a head or more");
  STD_TORCH_CHECK(problem.heads * problem.depth < (1 << 27), "ms_deform_attn: 2^27 channels or more");
  STD_TORCH_CHECK(problem.pixels < (int64_t{1} << 30), "ms_deform_attn: 2^30 pixels or more");
}

// How `width` channels a lane share a call's work among lanes.
template <typename S>
Work<S> make_work(const Call& call, int width) {
  const Problem& problem = call.problem;
  Work<S> work{};
  work.value = static_cast<const S*>(call.inputs.value);
  work.locations = static_cast<const Real<S>*>(call.inputs.locations);
  work.weights = static_cast<const Real<S>*>(call.inputs.weights);
  work.references = static_cast<const Real<S>*>(call.inputs.references);
  work.references_per_batch = call.inputs.references_per_batch;
  work.references_per_level = call.inputs.references_per_level;
  work.rows = problem.batch * problem.queries * problem.heads;
  work.queries = problem.queries;
  work.pixels = problem.pixels;
  work.heads = static_cast<int>(problem.heads);
  work.depth = static_cast<int>(problem.depth);
  work.levels = static_cast<int>(problem.levels);
  work.points = static_cast<int>(problem.points);
  work.per_row = work.levels * work.points;
  work.one_per_point = 1.0f / static_cast<float>(work.points);
  const int chunks = work.depth / width;
  work.passes = (chunks + kWarp - 1) / kWarp;
  work.group = (chunks + work.passes - 1) / work.passes;
  while (2 * work.reach < work.group) work.reach = std::max(1, 2 * work.reach);
  if (work.group == 1) work.reach = 0;
  work.rows_per_warp = kWarp / work.group;
  work.at_once = std::min(work.per_row, std::max(1, kPointsPerWarp / work.rows_per_warp));
  work.pitch = work.at_once | 1;
  int start = 0;
  for (int l = 0; l < work.levels; ++l) {
    const int height = static_cast<int>(call.heights[l]), columns = static_cast<int>(call.widths[l]);
    work.level[l] = {height, columns, start, 0};
    start += height * columns;
  }
  return work;
}

// Call run(S) for the call's type of values.
template <typename Run>
void with_type(ValueType type, const Run& run) {
  switch (type) {
    case ValueType::float64: return run(double{});
    case ValueType::bfloat16: return run(::BFloat16{});
    case ValueType::float16: return run(::Float16{});
    default: return run(float{});
  }
}

// Call run(width) for the most channels that fill 16 bytes or less and divide the depth.
template <typename S, int width = 16 / static_cast<int>(sizeof(S)), typename Run>
void with_width(int64_t depth, const Run& run) {
  if constexpr (width > 1) {
    if (depth % width != 0) return with_width<S, width / 2>(depth, run);
  }
  run(std::integral_constant<int, width>{});
}

template <typename Slot, typename S>
int64_t shared_bytes(const Work<S>& work) {
  return work.levels * static_cast<int64_t>(sizeof(Level)) +
         int64_t{kWarpsPerBlock} * work.rows_per_warp * work.pitch * static_cast<int64_t>(sizeof(Slot));
}

template <typename S>
int64_t blocks(const Work<S>& work) {
  const int64_t rows = int64_t{kWarpsPerBlock} * work.rows_per_warp;
  return (work.rows + rows - 1) / rows;
}

void prepare(Call* call) {
  align(&call->value, &call->inputs.value);
  align(&call->locations, &call->inputs.locations);
  align(&call->weights, &call->inputs.weights);
}

Tensor run_forward(Call call) {
  const Problem& problem = call.problem;
  const int64_t sizes[] = {problem.batch, problem.queries, problem.heads * problem.depth};
  check(call);
  const Device device(call.value);
  prepare(&call);
  if (call.is_empty()) return torch::stable::new_zeros(call.value, {sizes, 3});
  Tensor output = torch::stable::new_empty(call.value, {sizes, 3});
  with_type(problem.type, [&](auto type) {
    using S = decltype(type);
    with_width<S>(problem.depth, [&](auto width) {
      const Work<S> work = make_work<S>(call, width);
      device.launch(forward_kernel<S, width>, blocks(work), kWarp * kWarpsPerBlock,
                    shared_bytes<ForwardSlot<Real<S>>>(work), work, static_cast<S*>(output.mutable_data_ptr()));
    });
  });
  return output;
}

// As many pixels as fit in a warp's share of shared memory, but few enough that there are warps for a whole GPU.
template <typename S>
Tiles make_tiles(const Call& call) {
  constexpr int64_t sums = kSumBytes / static_cast<int64_t>(sizeof(Real<S>)), wanted = 4096;
  const Problem& problem = call.problem;
  Tiles tiles{};
  tiles.channels = static_cast<int>(std::min<int64_t>(problem.depth, 512));
  tiles.along_channels = static_cast<int>((problem.depth + tiles.channels - 1) / tiles.channels);
  const int64_t maps = problem.batch * problem.heads * tiles.along_channels;
  const int64_t even = (problem.pixels * maps + wanted - 1) / wanted;
  const int64_t most = sums / tiles.channels;
  tiles.pixels = static_cast<int>(std::clamp<int64_t>(even, std::min<int64_t>(16, most), most));
  tiles.along_pixels = (problem.pixels + tiles.pixels - 1) / tiles.pixels;
  tiles.count = maps * tiles.along_pixels;
  return tiles;
}

// Gradients of value, points and weights, contiguous, of the types that the operator was given.
std::tuple<Tensor, Tensor, Tensor> run_backward(Call call, const Tensor& grad_output, ScalarType points_type,
                                                ScalarType weights_type, bool deterministic) {
  const Problem& problem = call.problem;
  STD_TORCH_CHECK(grad_output.dim() == 3 && grad_output.size(0) == problem.batch &&
                      grad_output.size(1) == problem.queries && grad_output.size(2) == problem.heads * problem.depth,
                  "ms_deform_attn: the gradient must have the output's shape (B, Q, M * D)");
  STD_TORCH_CHECK(
      grad_output.is_cuda() == call.value.is_cuda() && grad_output.get_device_index() == call.value.get_device_index(),
      "ms_deform_attn: the gradient must be on the device of value");
  check(call);
  const Device device(call.value);
  prepare(&call);
  const ScalarType value_scalar = call.value.scalar_type(), real = real_type(problem.type);
  const bool empty = call.is_empty(), fused = call.inputs.references != nullptr;
  Tensor gradient = as_contiguous(grad_output, value_scalar);
  const void* incoming = nullptr;
  align(&gradient, &incoming);
  // Half-precision sums would lose what is small: atomic sums are float32 and rounded once, at the end.
  Tensor value = new_like(call.value, deterministic ? value_scalar : real, empty || !deterministic);
  Tensor points = new_like(call.locations, std::nullopt, empty), weights = new_like(call.weights, std::nullopt, empty);
  const Tensor softmax = fused && deterministic ? new_like(call.weights, std::nullopt, empty) : call.weights;
  if (!empty) {
    with_type(problem.type, [&](auto type) {
      using S = decltype(type);
      using T = Real<S>;
      Slopes<S> slopes{};
      slopes.output = static_cast<const S*>(incoming);
      if (!deterministic) slopes.value = static_cast<T*>(value.mutable_data_ptr());
      slopes.locations = static_cast<T*>(points.mutable_data_ptr());
      slopes.weights = static_cast<T*>(weights.mutable_data_ptr());
      if (fused && deterministic) slopes.softmax = static_cast<T*>(softmax.mutable_data_ptr());
      with_width<S>(problem.depth, [&](auto width) {
        const Work<S> work = make_work<S>(call, width);
        device.launch(backward_kernel<S, width>, blocks(work), kWarp * kWarpsPerBlock,
                      shared_bytes<BackwardSlot<T>>(work), work, slopes);
      });
      if (deterministic && problem.pixels > 0) {
        const Tiles tiles = make_tiles<S>(call);
        device.launch(gather_kernel<S>, tiles.count, kWarp, kSumBytes, make_work<S>(call, 1), tiles, slopes.output,
                      static_cast<const T*>(softmax.const_data_ptr()), static_cast<S*>(value.mutable_data_ptr()));
      }
    });
  }
  return {as_contiguous(value, value_scalar), as_contiguous(points, points_type), as_contiguous(weights, weights_type)};
}

Tensor forward(Tensor value, std::vector<int64_t> heights, std::vector<int64_t> widths, Tensor locations,
               Tensor weights, bool /*deterministic: without atomic sums, it is*/) {
  return run_forward({value, std::move(heights), std::move(widths), locations, weights, nullptr});
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor value, std::vector<int64_t> heights,
                                            std::vector<int64_t> widths, Tensor locations, Tensor weights,
                                            bool deterministic) {
  return run_backward({value, std::move(heights), std::move(widths), locations, weights, nullptr}, grad_output,
                      locations.scalar_type(), weights.scalar_type(), deterministic);
}

Tensor fused_forward(Tensor value, std::vector<int64_t> heights, std::vector<int64_t> widths, Tensor references,
                     Tensor offsets, Tensor logits, bool /*deterministic*/) {
  return run_forward({value, std::move(heights), std::move(widths), offsets, logits, &references});
}

std::tuple<Tensor, Tensor, Tensor> fused_backward(Tensor grad_output, Tensor value, std::vector<int64_t> heights,
                                                  std::vector<int64_t> widths, Tensor references, Tensor offsets,
                                                  Tensor logits, bool deterministic) {
  return run_backward({value, std::move(heights), std::move(widths), offsets, logits, &references}, grad_output,
                      offsets.scalar_type(), logits.scalar_type(), deterministic);
}

// Why the kernels cannot run with this machine's driver; empty if they can. Asks the driver for its version without
// initializing it, so that a process may still fork after importing the package.
std::string find_problem() {
#if defined(__CUDACC__)
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) return "no NVIDIA driver is installed here (libcuda.so.1)";
  const auto ask = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDriverGetVersion"));
  int version = 0;
  if (ask == nullptr || ask(&version) != 0) return "the NVIDIA driver does not answer";
  if (version / 1000 < CUDART_VERSION / 1000) {
    return "the NVIDIA driver is made for CUDA " + std::to_string(version / 1000) + " and the kernel for CUDA " +
           std::to_string(CUDART_VERSION / 1000) + "; update the driver, or compile with an older toolkit";
  }
#endif
  return "";
}

const std::string& problem_here() {
  static const std::string problem = find_problem();
  return problem;
}

template <typename Library>
void add_kernels(Library* library) {
  if (!problem_here().empty()) return;  // plain PyTorch stays in place
  library->impl("ms_deform_attn", TORCH_BOX(&forward));
  library->impl("ms_deform_attn_backward", TORCH_BOX(&backward));
  library->impl("ms_deform_attn_fused", TORCH_BOX(&fused_forward));
  library->impl("ms_deform_attn_fused_backward", TORCH_BOX(&fused_backward));
}

}  // namespace
}  // namespace dinomed

#if defined(__CUDACC__)
STABLE_TORCH_LIBRARY_IMPL(dinomed, CUDA, library) { dinomed::add_kernels(&library); }
#else
STABLE_TORCH_LIBRARY_IMPL(dinomed, CPU, library) { dinomed::add_kernels(&library); }
#endif

// Why the kernels are not registered; null if they are.
extern "C" __attribute__((visibility("default"))) const char* dinomed_cuda_problem() {
  const std::string& problem = dinomed::problem_here();
  return problem.empty() ? nullptr : problem.c_str();
}
