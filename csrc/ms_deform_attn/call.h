// A call as PyTorch makes it, checked, with its arrays contiguous: what the CPU's and CUDA's libraries have in common.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"

namespace dinomed {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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
      int64_t of_level = 0;
      STD_TORCH_CHECK(heights[l] < (int64_t{1} << 31) && widths[l] < (int64_t{1} << 31) &&
                          !__builtin_mul_overflow(heights[l], widths[l], &of_level) &&
                          !__builtin_add_overflow(pixels, of_level, &pixels),
                      "ms_deform_attn: maps of ", heights[l], " x ", widths[l], " pixels are too large");
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
};

Tensor new_like(const Tensor& tensor, std::optional<ScalarType> type, bool zero) {
  return zero ? torch::stable::new_zeros(tensor, tensor.sizes(), type)
              : torch::stable::new_empty(tensor, tensor.sizes(), type);
}

}  // namespace
}  // namespace dinomed
