// Drives the CPU kernels with exactly as much memory as their arrays need, so that a sanitizer sees any step beyond.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "ms_deform_attn/kernels.h"

namespace dinomed {
namespace {
void* scratch = nullptr;
}

// A fresh block of exactly that size for each piece.
void* borrow_scratch(uint64_t bytes) {
  scratch = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  return scratch;
}

void return_scratch() {
  std::free(scratch);
  scratch = nullptr;
}

namespace {

std::mt19937 generator(1);

int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

template <typename Real>
Real hostile() {
  const Real infinity = std::numeric_limits<Real>::infinity();
  const Real all[] = {infinity,    -infinity, std::nan(""), std::numeric_limits<Real>::max(),
                      Real(-1e30), Real(1e9), Real(0)};
  return all[draw(0, 6)];
}

template <typename Real>
std::vector<Real> numbers(int64_t count, double spread, double share_hostile) {
  std::vector<Real> all(static_cast<size_t>(count));
  std::normal_distribution<double> normal(0, spread);
  for (Real& number : all)
    number = draw(0, 999) < 1000 * share_hostile ? hostile<Real>() : static_cast<Real>(normal(generator));
  return all;
}

template <typename Real>
void run(const Kernels& kernels, ValueType type, bool packed, bool fused) {
  const int64_t size = type == ValueType::float64 ? 8 : type == ValueType::float32 ? 4 : 2;
  std::vector<int64_t> heights, widths;
  Problem problem{type, draw(1, 2), 0, draw(1, 6), draw(1, 70), draw(1, 9), draw(1, 5), draw(1, 17), nullptr, nullptr};
  for (int64_t l = 0; l < problem.levels; ++l) {
    heights.push_back(draw(draw(0, 1), 9));
    widths.push_back(draw(1, 9));
    problem.pixels += heights.back() * widths.back();
  }
  problem.heights = heights.data();
  problem.widths = widths.data();
  const int64_t points = problem.batch * problem.queries * problem.heads * problem.levels * problem.points;
  const int64_t values = problem.batch * problem.pixels * problem.heads * problem.depth;
  const int64_t outputs = problem.batch * problem.queries * problem.heads * problem.depth;
  std::vector<unsigned char> value(static_cast<size_t>(values * size)), gradient(static_cast<size_t>(outputs * size));
  for (unsigned char& byte : value) byte = static_cast<unsigned char>(draw(0, 255));
  for (unsigned char& byte : gradient) byte = static_cast<unsigned char>(draw(0, 255));
  std::vector<unsigned char> output(gradient.size());
  const std::vector<Real> locations = numbers<Real>(2 * points, fused ? 4 : 1, 0.1);
  const std::vector<Real> weights = numbers<Real>(points, 3, 0.02);
  const bool per_batch = draw(0, 1) == 1, per_level = draw(0, 1) == 1;
  const int64_t references = (per_batch ? problem.batch : 1) * problem.queries * (per_level ? problem.levels : 1) * 2;
  const std::vector<Real> reference = numbers<Real>(references, 1, 0.05);
  const Inputs inputs{value.data(),
                      locations.data(),
                      weights.data(),
                      fused ? reference.data() : nullptr,
                      per_batch && problem.batch > 1,
                      per_level && problem.levels > 1};
  std::vector<Real> grad_value(static_cast<size_t>(values)), grad_locations(locations.size()),
      grad_weights(weights.size());
  const Gradients gradients{gradient.data(), grad_value.data(), grad_locations.data(), grad_weights.data()};
  for (int64_t batch = 0; batch < problem.batch; ++batch) {
    for (int64_t head = 0; head < problem.heads; head += 3) {
      const Piece piece{batch, head, problem.heads - head < 3 ? problem.heads - head : 3, 0, problem.queries};
      if (!kernels.forward(problem, inputs, output.data(), piece, packed)) std::abort();
      if (!kernels.backward(problem, inputs, gradients, piece, packed)) std::abort();
    }
  }
}

bool runs_here(const Kernels& kernels) {
#if defined(__x86_64__)
  if (&kernels == &avx2_kernels) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  if (&kernels == &avx512_kernels) return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
  return true;
}

}  // namespace
}  // namespace dinomed

int main(int count, char** arguments) {
  using dinomed::ValueType;
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 50;
  const dinomed::Kernels* const all[] = {
#if defined(__x86_64__)
      &dinomed::avx512_kernels, &dinomed::avx2_kernels,
#endif
      &dinomed::portable_kernels};
  for (const dinomed::Kernels* kernels : all) {
    if (!dinomed::runs_here(*kernels)) continue;
    for (int i = 0; i < rounds * 4; ++i) {
      const bool packed = i % 2 == 0, fused = i / 2 % 2 == 0;
      dinomed::run<float>(*kernels, ValueType::float32, packed, fused);
      dinomed::run<float>(*kernels, ValueType::bfloat16, packed, fused);
      dinomed::run<float>(*kernels, ValueType::float16, packed, fused);
      dinomed::run<double>(*kernels, ValueType::float64, packed, fused);
    }
    std::printf("%s: %d problems, nothing found\n", kernels->name, rounds * 16);
  }
}
