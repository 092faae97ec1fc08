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

struct AddNormCall {
  AddNorm settings;
  at::Tensor branch_row;
  bool has_bias;

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
    const at::Tensor y = at::empty_like(residual), sum = at::empty_like(residual);
    const std::int64_t width = row_width(residual);
    const std::int64_t rows = width == 0 ? 0 : residual.numel() / width;
    const auto floats = residual.options().dtype(at::kFloat);
    const at::Tensor mean = at::empty({rows}, floats), rstd = at::empty({rows}, floats);
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
    context->save_for_backward({sum, mean, rstd, weight});
    keep(*context, Call(call, branch.sizes().vec()));
    return {y, sum};
  }

  static Tensors backward(Context* context, const Tensors& gradients) {
    check(!at::GradMode::is_enabled(),
          "dropout_add_norm: its gradient cannot be differentiated again");
    const Call its = kept<Call>(*context);
    const AddNormCall& call = its.first;
    const auto saved = context->get_saved_variables();
    const at::Tensor &sum = saved[0], &mean = saved[1], &rstd = saved[2], &weight = saved[3];
    const at::Tensor dsum = gradients[1].defined() ? gradients[1].contiguous() : at::Tensor();
    if (!gradients[0].defined() && !dsum.defined()) return Tensors(5);
    const at::Tensor dy = gradients[0].defined() ? gradients[0].contiguous() : at::zeros_like(sum);

    const bool same =
        call.settings.mask.keeps_all() && call.settings.scale == 1 && !call.branch_row.defined();
    const at::Tensor dresidual = at::empty_like(sum);
    const at::Tensor dbranch = !context->needs_input_grad(0) ? at::Tensor()
                               : same                        ? dresidual
                                                             : at::empty(its.second, sum.options());
    const std::int64_t width = row_width(sum), rows = mean.numel();
    // Sums of weight and bias over pieces that depend neither on the threads nor on the GPU.
    const std::int64_t most_pieces = sum.is_cuda() ? 256 : 64;
    // Inputs that are no tensors have no number.
    const std::size_t bias_number = weight.defined() ? 3 : 2;
    const bool of_weight = weight.defined() && context->needs_input_grad(2);
    const bool of_bias = call.has_bias && context->needs_input_grad(bias_number);
    const std::int64_t piece = std::max<std::int64_t>(16, (rows + most_pieces - 1) / most_pieces);
    const std::int64_t pieces = (rows + piece - 1) / piece;
    const auto sums = [&](bool wanted) {
      return wanted ? at::zeros({pieces, width}, mean.options()) : at::Tensor();
    };
    const at::Tensor dweights = sums(of_weight), dbiases = sums(of_bias);
    const auto of_piece = [&](const at::Tensor& all, std::int64_t i) {
      return all.defined() ? all.mutable_data_ptr<float>() + i * width : nullptr;
    };
    with_kernel_type(sum, [&]<class T>() {
      if (sum.is_cuda()) {
        const OnGpu gpu(sum);
        cuda::slots.of<T>().dropout_add_norm_backward(
            call.kernel<T>(sum, weight), kernel_data<const T>(dy), kernel_data<const T>(dsum),
            kernel_data<const T>(sum), kernel_data<const float>(mean),
            kernel_data<const float>(rstd), kernel_data<T>(dbranch), kernel_data<T>(dresidual),
            kernel_data<float>(dweights), kernel_data<float>(dbiases),
            std::max<std::int64_t>(pieces, 1), rows, gpu.stream);
        return;
      }
      for_rows(pieces, piece * width, [&](std::int64_t first, std::int64_t end) {
        for (std::int64_t i = first; i < end; ++i)
          cpu::dropout_add_norm_backward(
              call.kernel<T>(sum, weight), kernel_data<const T>(dy), kernel_data<const T>(dsum),
              kernel_data<const T>(sum), kernel_data<const float>(mean),
              kernel_data<const float>(rstd), kernel_data<T>(dbranch), kernel_data<T>(dresidual),
              of_piece(dweights, i), of_piece(dbiases, i), i * piece,
              std::min(rows, (i + 1) * piece));
      });
    });
    const auto total = [&](const at::Tensor& all) {
      return all.defined() ? sum_of_parts(all).to(sum.scalar_type()) : all;
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

}  // namespace detail

/// Dropout, residual add and LayerNorm or RMSNorm in one pass over memory:
///
///     sum = residual + scale * mask * branch;   y = norm(sum) * weight + bias
///
/// residual: [..., d]; branch: the same shape or, with `rows`, [m, d], added to those of the
/// residual's rows (all dimensions but the last, flattened). weight, bias: [d] or undefined (ones,
/// zeros). Post-norm layers use y alone; pre-norm ones hand `sum` on as the next residual.
///
/// Keeps sum and 8 bytes a row for backward, nothing for the mask. fp32 and bf16 on the CPU and,
/// with droppeft::cuda and d <= 8192, on a GPU when all are of one dtype; what else LibTorch adds
/// and norms is composed of its operations, with the same numbers dropped. The results do not
/// depend on the threads. One pass cannot be differentiated twice: that is refused.
///
/// Throws std::invalid_argument for shapes that do not fit, rows that are out of range or twice
/// there, an epsilon or scale that is negative or not finite.
///
/// Sources: see kernels/cpu/dropout_add_norm.hpp; row dropout as in DINOv2 (arXiv 2304.07193).
inline NormedSum dropout_add_norm(const at::Tensor& branch, const at::Tensor& residual,
                                  const at::Tensor& weight, const at::Tensor& bias,
                                  const AddNorm& settings = {}) {
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
  detail::AddNormCall call{settings, {}, bias.defined()};
  if (settings.rows.defined()) {
    check(settings.rows.dim() == 1 && !settings.rows.is_floating_point() && branch.dim() == 2 &&
              branch.size(0) == settings.rows.size(0) && branch.size(1) == width,
          "dropout_add_norm: with rows of shape [m] the branch must be [m, ", width, "], got ",
          settings.rows.sizes(), " and ", branch.sizes());
    call.branch_row = detail::branch_rows(settings.rows, count).to(residual.device());
  } else {
    check(branch.sizes() == residual.sizes(),
          "dropout_add_norm: branch and residual must have one shape, got ", branch.sizes(),
          " and ", residual.sizes());
  }
  const auto fits = [&](const at::Tensor& x) {
    return !x.defined() || (detail::has_kernel(x) && x.device() == residual.device() &&
                            x.scalar_type() == residual.scalar_type());
  };
  const bool too_wide = residual.is_cuda() && width > cuda::widest_normed_row;
  if (too_wide || !fits(residual) || !fits(branch) || !fits(weight) || !fits(bias))
    return detail::composed_add_norm(branch, residual, weight, bias, settings);
  const auto given = [](const at::Tensor& x) {
    return x.defined() ? std::optional(x.contiguous()) : std::nullopt;
  };
  const auto out = detail::DropoutAddNormFunction::apply(branch.contiguous(), residual.contiguous(),
                                                         given(weight), given(bias), call);
  return {out[0], out[1]};
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
    return forward_sum(branch, residual).y;
  }

  /// The same and the sum: the next residual of pre-norm layers.
  NormedSum forward_sum(const at::Tensor& branch, const at::Tensor& residual) {
    check(residual.dim() >= 1 && residual.size(-1) == options.width(),
          "DropoutAddNorm: the last dimension of the residual must be ", options.width(),
          ", got the shape ", residual.sizes());
    return dropout_add_norm(
        branch, residual, weight, bias,
        {.norm = options.norm(),
         .epsilon = options.eps(),
         .mask = is_training() ? KeepMask::next(stream_, options.rate()) : KeepMask()});
  }

  void pretty_print(std::ostream& stream) const override {
    stream << "droppeft::DropoutAddNorm(" << options.width() << ", "
           << (options.norm() == Norm::layer ? "LayerNorm" : "RMSNorm")
           << ", rate=" << options.rate() << ", eps=" << options.eps() << ")";
  }

  DropoutAddNormOptions options;
  at::Tensor weight, bias;
};

/// torch::nn::LayerNorm (or RMSNorm) that also drops out and adds the branch before it: see
/// dropout_add_norm. Parameters "weight" (ones) and "bias" (zeros), as LayerNorm's, so that its
/// files load. Throws std::invalid_argument for a width < 1, a rate outside [0, 1), an eps that is
/// negative or not finite, and for inputs of another width.
TORCH_MODULE(DropoutAddNorm);

}  // namespace droppeft
