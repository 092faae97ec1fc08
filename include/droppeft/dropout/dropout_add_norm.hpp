#pragma once

#include <ATen/ATen.h>
#include <torch/arg.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <type_traits>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/core/kernel_tensors.hpp"
#include "droppeft/core/module.hpp"
#include "droppeft/core/sum_of_parts.hpp"
#include "droppeft/dropout/dropout.hpp"
#include "droppeft/kernels/cpu/dropout_add_norm.hpp"
#include "droppeft/kernels/keep_mask.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

using cpu::Norm;

/// How dropout_add_norm combines a branch with its residual.
struct AddNorm {
  Norm norm = Norm::layer;
  double epsilon = 1e-5;
  /// The branch is multiplied by scale * mask: 1 / (1 - rate) of row dropout, for one.
  double scale = 1;
  KeepMask mask{};
  /// int64 [m]: the rows of the residual that the branch's m rows are added to, no two the same;
  /// none: all of them, one by one. To the others nothing is added.
  at::Tensor rows{};
};

/// y: the norm of sum = residual + scale * mask * branch. Both have the residual's shape.
struct NormedSum {
  at::Tensor y, sum;
};

namespace detail {

/// The branch's row of each of the residual's `count` rows, -1 where there is none.
inline at::Tensor branch_rows(const at::Tensor& rows, std::int64_t count) {
  const at::Tensor given = rows.to(at::kCPU, at::kLong).contiguous();
  at::Tensor inverse = at::full({count}, -1, at::kLong);
  auto* const branch = inverse.mutable_data_ptr<std::int64_t>();
  const auto* const row = given.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < given.numel(); ++i) {
    check(row[i] >= 0 && row[i] < count, "dropout_add_norm: rows must be in [0, ", count, "), got ",
          row[i]);
    check(branch[row[i]] < 0, "dropout_add_norm: rows must differ, got ", row[i], " twice");
    branch[row[i]] = i;
  }
  return inverse;
}

/// What forward keeps for backward: sum, mean and rstd; y and rstd; nothing.
enum class KeptNorm { sum, y, nothing };

/// Is h = (y - bias) / weight good to 2^-18, also where tiny numbers are flushed to zero?
inline bool y_tells_norm(const at::Tensor& like_y, const at::Tensor& weight,
                         const at::Tensor& bias) {
  if (!like_y.is_cpu() || like_y.scalar_type() != at::kFloat) return false;
  const auto* const w = kernel_data<const float>(weight);
  const auto* const b = kernel_data<const float>(bias);
  bool good = true;
  for (std::int64_t i = 0; i < row_width(like_y); ++i) {
    const float size = w == nullptr ? 1 : std::abs(w[i]), shift = b == nullptr ? 0 : std::abs(b[i]);
    good = good && size >= 0x1p-108F && shift <= 64 * size;
  }
  return good;
}

struct AddNormCall {
  AddNorm settings;
  at::Tensor branch_row;
  KeptNorm kept = KeptNorm::sum;

  template <class T>
  cpu::DropoutAddNorm<T> kernel(const at::Tensor& residual, const at::Tensor& weight) const {
    return {.norm = settings.norm,
            .epsilon = settings.epsilon,
            .width = row_width(residual),
            .weight = kernel_data<const T>(weight),
            .scale = static_cast<float>(settings.scale),
            .mask = settings.mask,
            .branch_row = kernel_data<const std::int64_t>(branch_row)};
  }
};

struct DropoutAddNormFunction : torch::autograd::Function<DropoutAddNormFunction> {
  using Context = torch::autograd::AutogradContext;
  using Tensors = torch::autograd::variable_list;
  using Call = std::pair<AddNormCall, std::vector<std::int64_t>>;  // and the branch's shape

  static Tensors forward(Context* context, const at::Tensor& branch, const at::Tensor& residual,
                         const std::optional<at::Tensor>& its_weight,
                         const std::optional<at::Tensor>& its_bias, const AddNormCall& call) {
    const at::Tensor weight = its_weight.value_or(at::Tensor());
    const at::Tensor bias = its_bias.value_or(at::Tensor());
    const std::int64_t width = row_width(residual);
    const std::int64_t rows = width == 0 ? 0 : residual.numel() / width;
    const auto if_kept = [&](bool is, auto... how) {
      return is ? at::empty(how...) : at::Tensor();
    };
    const auto floats = residual.options().dtype(at::kFloat);
    const bool keeps_sum = call.kept == KeptNorm::sum;
    const at::Tensor y = at::empty_like(residual);
    const at::Tensor sum = if_kept(keeps_sum, residual.sizes(), residual.options());
    const at::Tensor mean = if_kept(keeps_sum, at::IntArrayRef{rows}, floats);
    const at::Tensor rstd = if_kept(call.kept != KeptNorm::nothing, at::IntArrayRef{rows}, floats);
    with_kernel_type(residual, [&]<class T>() {
      if (residual.is_cuda()) {
        const OnGpu gpu(residual);
        cuda::slots.of<T>().dropout_add_norm(
            call.kernel<T>(residual, weight), kernel_data<const T>(branch),
            kernel_data<const T>(residual), kernel_data<const T>(bias), kernel_data<T>(y),
            kernel_data<T>(sum), kernel_data<float>(mean), kernel_data<float>(rstd), rows,
            gpu.stream);
        return;
      }
      for_rows(rows, width, [&](std::int64_t first, std::int64_t end) {
        cpu::dropout_add_norm(call.kernel<T>(residual, weight), kernel_data<const T>(branch),
                              kernel_data<const T>(residual), kernel_data<const T>(bias),
                              kernel_data<T>(y), kernel_data<T>(sum), kernel_data<float>(mean),
                              kernel_data<float>(rstd), first, end);
      });
    });
    context->set_materialize_grads(false);
    context->save_for_backward({keeps_sum ? sum : y, mean, rstd, weight, bias});
    keep(*context, Call(call, branch.sizes().vec()));
    return keeps_sum ? Tensors{y, sum} : Tensors{y};
  }

  static Tensors backward(Context* context, const Tensors& gradients) {
    check(!at::GradMode::is_enabled(),
          "dropout_add_norm: its gradient cannot be differentiated again");
    const Call its = kept<Call>(*context);
    const AddNormCall& call = its.first;
    const auto saved = context->get_saved_variables();
    const at::Tensor &kept_rows = saved[0], &mean = saved[1], &rstd = saved[2], &weight = saved[3],
                     &bias = saved[4];
    const auto if_defined = [](const at::Tensor& gradient) {
      return gradient.defined() ? gradient.contiguous() : gradient;
    };
    at::Tensor dy = if_defined(gradients[0]);
    const at::Tensor dsum = gradients.size() > 1 ? if_defined(gradients[1]) : at::Tensor();
    if (!dy.defined() && !dsum.defined()) return Tensors(5);
    if (!dy.defined()) dy = at::zeros_like(kept_rows);

    const bool same =
        call.settings.mask.keeps_all() && call.settings.scale == 1 && !call.branch_row.defined();
    const at::Tensor dresidual = at::empty_like(kept_rows);
    const at::Tensor dbranch = !context->needs_input_grad(0) ? at::Tensor()
                               : same                        ? dresidual
                                      : at::empty(its.second, kept_rows.options());
    const std::int64_t width = row_width(dresidual), rows = rstd.numel();
    // Sums of weight and bias over pieces that depend neither on the threads nor on the GPU.
    const std::int64_t most_pieces = dresidual.is_cuda() ? 256 : 64;
    // Inputs that are no tensors have no number.
    const std::size_t bias_number = weight.defined() ? 3 : 2;
    const bool of_weight = weight.defined() && context->needs_input_grad(2);
    const bool of_bias = bias.defined() && context->needs_input_grad(bias_number);
    const std::int64_t piece = std::max<std::int64_t>(16, (rows + most_pieces - 1) / most_pieces);
    const std::int64_t pieces = (rows + piece - 1) / piece;
    const auto sums = [&](bool wanted) {
      return wanted ? at::zeros({pieces, width}, rstd.options()) : at::Tensor();
    };
    const at::Tensor dweights = sums(of_weight), dbiases = sums(of_bias);
    const auto of_piece = [&](const at::Tensor& all, std::int64_t i) {
      return all.defined() ? all.mutable_data_ptr<float>() + i * width : nullptr;
    };
    with_kernel_type(dresidual, [&]<class T>() {
      const auto kernel = call.kernel<T>(dresidual, weight);
      if (dresidual.is_cuda()) {
        const OnGpu gpu(dresidual);
        cuda::slots.of<T>().dropout_add_norm_backward(
            kernel, kernel_data<const T>(dy), kernel_data<const T>(dsum),
            kernel_data<const T>(kept_rows), kernel_data<const float>(mean),
            kernel_data<const float>(rstd), kernel_data<T>(dbranch), kernel_data<T>(dresidual),
            kernel_data<float>(dweights), kernel_data<float>(dbiases),
            std::max<std::int64_t>(pieces, 1), rows, gpu.stream);
        return;
      }
      const auto run = [&](const auto& its_kept) {
        for_rows(pieces, piece * width, [&](std::int64_t first, std::int64_t end) {
          for (std::int64_t i = first; i < end; ++i)
            cpu::dropout_add_norm_backward(
                kernel, kernel_data<const T>(dy), kernel_data<const T>(dsum), its_kept,
                kernel_data<T>(dbranch), kernel_data<T>(dresidual), of_piece(dweights, i),
                of_piece(dbiases, i), i * piece, std::min(rows, (i + 1) * piece));
        });
      };
      const auto* const rstds = kernel_data<const float>(rstd);
      if constexpr (std::is_same_v<T, float>) {
        if (call.kept == KeptNorm::y) {
          const at::Tensor inverse = weight.defined() ? at::reciprocal(weight) : weight;
          return run(cpu::KeptY{kernel_data<const float>(kept_rows), kernel_data<const float>(bias),
                                kernel_data<const float>(inverse), rstds});
        }
      }
      run(cpu::KeptSum<T>{kernel_data<const T>(kept_rows), kernel_data<const float>(mean), rstds});
    });
    const auto total = [&](const at::Tensor& all) {
      return all.defined() ? sum_of_parts(all).to(dresidual.scalar_type()) : all;
    };
    return {dbranch, dresidual, total(dweights), total(dbiases), at::Tensor()};
  }
};

/// The same of ATen's operations, for what has no kernel.
inline NormedSum composed_add_norm(const at::Tensor& branch, const at::Tensor& residual,
                                   const at::Tensor& weight, const at::Tensor& bias,
                                   const AddNorm& settings) {
  at::Tensor added = dropout(branch, settings.mask);
  if (settings.scale != 1) added = added * settings.scale;
  const std::int64_t width = row_width(residual);
  const at::Tensor sum = settings.rows.defined()
                             ? residual.reshape({-1, width})
                                   .index_add(0, settings.rows.to(residual.device(), at::kLong),
                                              added.reshape({-1, width}).to(residual.scalar_type()))
                                   .view_as(residual)
                             : residual + added;
  if (settings.norm == Norm::layer)
    return {at::layer_norm(sum, {width}, weight, bias, settings.epsilon), sum};
  at::Tensor y = sum * at::rsqrt(sum.square().mean(-1, /*keepdim=*/true) + settings.epsilon);
  if (weight.defined()) y = y * weight;
  if (bias.defined()) y = y + bias;
  return {y, sum};
}

/// y and, when it is wanted or kept anyway, sum.
inline NormedSum add_norm(const at::Tensor& branch, const at::Tensor& residual,
                          const at::Tensor& weight, const at::Tensor& bias, const AddNorm& settings,
                          bool wants_sum) {
  const auto good = [](double number) { return std::isfinite(number) && number >= 0; };
  check(good(settings.epsilon) && good(settings.scale),
        "dropout_add_norm: epsilon and scale must be finite and not negative, got ",
        settings.epsilon, " and ", settings.scale);
  check(residual.dim() >= 1 && residual.size(-1) >= 1,
        "dropout_add_norm: the residual needs a last dimension of at least 1, got the shape ",
        residual.sizes());
  const std::int64_t width = residual.size(-1), count = residual.numel() / width;
  for (const at::Tensor* each : {&weight, &bias})
    check(!each->defined() || (each->dim() == 1 && each->size(0) == width),
          "dropout_add_norm: weight and bias must have the shape [", width, "], got ",
          each->defined() ? each->sizes() : at::IntArrayRef{});
  at::Tensor branch_row;
  if (settings.rows.defined()) {
    check(settings.rows.dim() == 1 && !settings.rows.is_floating_point() && branch.dim() == 2 &&
              branch.size(0) == settings.rows.size(0) && branch.size(1) == width,
          "dropout_add_norm: with rows of shape [m] the branch must be [m, ", width, "], got ",
          settings.rows.sizes(), " and ", branch.sizes());
    branch_row = branch_rows(settings.rows, count).to(residual.device());
  } else {
    check(branch.sizes() == residual.sizes(),
          "dropout_add_norm: branch and residual must have one shape, got ", branch.sizes(),
          " and ", residual.sizes());
  }
  const auto fits = [&](const at::Tensor& x) {
    return !x.defined() || (has_kernel(x) && x.device() == residual.device() &&
                            x.scalar_type() == residual.scalar_type());
  };
  const bool too_wide = residual.is_cuda() && width > cuda::widest_normed_row;
  if (too_wide || !fits(residual) || !fits(branch) || !fits(weight) || !fits(bias))
    return composed_add_norm(branch, residual, weight, bias, settings);
  const auto given = [](const at::Tensor& x) {
    return x.defined() ? std::optional(x.contiguous()) : std::nullopt;
  };
  const std::optional<at::Tensor> its_weight = given(weight), its_bias = given(bias);
  KeptNorm kept = KeptNorm::sum;
  if (!wants_sum) {
    const auto trained = [](const at::Tensor& x) { return x.defined() && x.requires_grad(); };
    const bool backward = at::GradMode::is_enabled() && (trained(branch) || trained(residual) ||
                                                         trained(weight) || trained(bias));
    if (!backward)
      kept = KeptNorm::nothing;
    else if (y_tells_norm(residual, its_weight.value_or(weight), its_bias.value_or(bias)))
      kept = KeptNorm::y;
  }
  const auto out =
      DropoutAddNormFunction::apply(branch.contiguous(), residual.contiguous(), its_weight,
                                    its_bias, AddNormCall{settings, std::move(branch_row), kept});
  return {out[0], out.size() > 1 ? out[1] : at::Tensor()};
}

}  // namespace detail

/// Dropout, residual add and LayerNorm or RMSNorm in one pass over memory:
///
///     sum = residual + scale * mask * branch;   y = norm(sum) * weight + bias
///
/// residual: [..., d]; branch: the same shape or, with `rows`, [m, d], added to those of the
/// residual's rows (all dimensions but the last, flattened). weight, bias: [d] or undefined (ones,
/// zeros). Returns y, all that post-norm layers need; pre-norm ones take dropout_add_norm_sum.
///
/// fp32 and bf16 on the CPU and, with droppeft::cuda and d <= 8192, on a GPU when all are of one
/// dtype; what else LibTorch adds and norms is composed of its operations, with the same numbers
/// dropped. The results do not depend on the threads. One pass cannot be differentiated twice: that
/// is refused.
///
/// Keeps nothing for the mask and, without a gradient to come, nothing at all. For backward, on the
/// CPU in fp32, y itself, which the next layer keeps anyway, and 4 bytes a row: the normed rows are
/// (y - bias) / weight. Do not change y in place then (LibTorch refuses backward if you do). Where
/// some |bias| > 64 |weight|, in bf16 (y is rounded too much) and on a GPU (which would have to be
/// waited for) it keeps sum and 8 bytes a row.
///
/// Throws std::invalid_argument for shapes that do not fit, rows that are out of range or twice
/// there, an epsilon or scale that is negative or not finite.
///
/// Sources: see kernels/cpu/dropout_add_norm.hpp; row dropout as in DINOv2 (arXiv 2304.07193); the
/// norm that keeps its output: NVIDIA Apex's memory_efficient, Yang et al., arXiv 2406.16282.
inline at::Tensor dropout_add_norm(const at::Tensor& branch, const at::Tensor& residual,
                                   const at::Tensor& weight, const at::Tensor& bias,
                                   const AddNorm& settings = {}) {
  return detail::add_norm(branch, residual, weight, bias, settings, /*wants_sum=*/false).y;
}

/// The same and the sum, on which pre-norm layers go on. Keeps the sum and 8 bytes a row.
inline NormedSum dropout_add_norm_sum(const at::Tensor& branch, const at::Tensor& residual,
                                      const at::Tensor& weight, const at::Tensor& bias,
                                      const AddNorm& settings = {}) {
  return detail::add_norm(branch, residual, weight, bias, settings, /*wants_sum=*/true);
}

/// Settings of DropoutAddNorm.
struct DropoutAddNormOptions {
  explicit DropoutAddNormOptions(std::int64_t width) : width_(width) {}

  /// d: the size of the last dimension, at least 1.
  TORCH_ARG(std::int64_t, width);
  TORCH_ARG(Norm, norm) = Norm::layer;
  /// Probability, in [0, 1), that a number of the branch is zeroed in training.
  TORCH_ARG(double, rate) = 0;
  TORCH_ARG(double, eps) = 1e-5;
  /// Is there a bias beside the weight?
  TORCH_ARG(bool, bias) = true;
  /// Where masks are drawn from; by default a stream of its own (see Randomized).
  TORCH_ARG(std::optional<Stream>, stream) = std::nullopt;
};

/// The module behind DropoutAddNorm.
class DropoutAddNormImpl : public torch::nn::Cloneable<DropoutAddNormImpl>, public Randomized {
 public:
  explicit DropoutAddNormImpl(const DropoutAddNormOptions& settings)
      : Randomized(settings.stream()), options(settings) {
    check(options.width() >= 1, "DropoutAddNorm: the width must be at least 1, got ",
          options.width());
    check(std::isfinite(options.eps()) && options.eps() >= 0,
          "DropoutAddNorm: eps must be finite and not negative, got ", options.eps());
    KeepMask(Stream(), options.rate());  // checks the rate
    reset();
  }

  void reset() override {
    weight = register_parameter("weight", at::ones({options.width()}));
    if (options.bias()) bias = register_parameter("bias", at::zeros({options.width()}));
  }

  /// norm(residual + dropout(branch)), both [..., d]: what post-norm layers return.
  at::Tensor forward(const at::Tensor& branch, const at::Tensor& residual) {
    return dropout_add_norm(branch, residual, weight, bias, settings_for(residual));
  }

  /// The same and the sum: the next residual of pre-norm layers.
  NormedSum forward_sum(const at::Tensor& branch, const at::Tensor& residual) {
    return dropout_add_norm_sum(branch, residual, weight, bias, settings_for(residual));
  }

  void pretty_print(std::ostream& stream) const override {
    stream << "droppeft::DropoutAddNorm(" << options.width() << ", "
           << (options.norm() == Norm::layer ? "LayerNorm" : "RMSNorm")
           << ", rate=" << options.rate() << ", eps=" << options.eps() << ")";
  }

  DropoutAddNormOptions options;
  at::Tensor weight, bias;

 private:
  AddNorm settings_for(const at::Tensor& residual) {
    check(residual.dim() >= 1 && residual.size(-1) == options.width(),
          "DropoutAddNorm: the last dimension of the residual must be ", options.width(),
          ", got the shape ", residual.sizes());
    return {.norm = options.norm(),
            .epsilon = options.eps(),
            .mask = is_training() ? KeepMask::next(stream_, options.rate()) : KeepMask()};
  }
};

/// torch::nn::LayerNorm (or RMSNorm) that also drops out and adds the branch before it: see
/// dropout_add_norm. Parameters "weight" (ones) and "bias" (zeros), as LayerNorm's, so that its
/// files load. Throws std::invalid_argument for a width < 1, a rate outside [0, 1), an eps that is
/// negative or not finite, and for inputs of another width.
TORCH_MODULE(DropoutAddNorm);

}  // namespace droppeft
