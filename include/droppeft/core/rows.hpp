#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>

#include "droppeft/core/check.hpp"
#include "droppeft/core/kernel_tensors.hpp"
#include "droppeft/core/parallel.hpp"
#include "droppeft/kernels/cpu/rows.hpp"

namespace droppeft {

namespace detail {

inline void check_rows(const char* function, const at::Tensor& x, const at::Tensor& rows,
                       std::int64_t count) {
  check(rows.device() == x.device(), "droppeft::", function, ": rows must be on ", x.device(),
        " as x is, got ", rows.device());
  check(rows.dim() == 1 && rows.scalar_type() == at::kLong, "droppeft::", function,
        ": rows must be an int64 vector, got ", rows.scalar_type(), " ", rows.sizes());
  if (!rows.is_cpu()) return;
  const auto at = rows.accessor<std::int64_t, 1>();
  for (std::int64_t i = 0; i < at.size(0); ++i) {
    check(at[i] >= 0 && at[i] < count, "droppeft::", function, ": rows must be in [0, ", count,
          "), got ", at[i]);
    check(i == 0 || at[i] > at[i - 1], "droppeft::", function,
          ": rows must ascend without repetition, got ", at[i], " after ", i > 0 ? at[i - 1] : 0);
  }
}

inline void check_some(const char* function, const at::Tensor& x, const at::Tensor& rows,
                       const at::Tensor& y) {
  check(y.dim() == x.dim() && y.size(0) == rows.size(0) &&
            y.sizes().slice(1) == x.sizes().slice(1) && y.dtype() == x.dtype() &&
            y.device() == x.device(),
        "droppeft::", function, ": y must have a row for each of the ", rows.size(0),
        " of x, and x's dtype and device, got ", y.dtype(), " ", y.sizes(), " on ", y.device(),
        " for x ", x.dtype(), " ", x.sizes(), " on ", x.device());
  check(!(x.is_leaf() && x.requires_grad() && at::GradMode::is_enabled()), "droppeft::", function,
        ": x must not be a leaf that requires a gradient, for it is changed: pass a copy");
}

/// Do its rows lie one after the other, as bytes that can be copied (on a GPU: as numbers that its
/// kernels work on)?
inline bool has_rows(const at::Tensor& x) {
  return (x.is_cpu() || has_kernel(x)) && x.layout() == at::kStrided && x.is_contiguous() &&
         !x.is_neg() && !x.is_conj() && !x._is_zerotensor();
}

/// If x is on a GPU, function.operator()<T>(its kernels, width of a row, stream).
template <class Function>
bool for_gpu_rows(const at::Tensor& x, const Function& function) {
  if (!x.is_cuda()) return false;
  if (x.numel() == 0) return true;
  const OnGpu gpu(x);
  with_kernel_type(x, [&]<class T>() {
    function.template operator()<T>(cuda::slots.of<T>(), x.numel() / x.size(0), gpu.stream);
  });
  return true;
}

inline at::Tensor empty_rows(const at::Tensor& x, std::int64_t count) {
  auto shape = x.sizes().vec();
  shape[0] = count;
  return at::empty(shape, x.options());
}

/// function(width, first, end) for the positions of a contiguous x, in numbers of `size` bytes.
template <class Function>
void for_positions(const at::Tensor& x, std::int64_t size, const Function& function) {
  if (x.numel() == 0) return;
  const std::int64_t numbers = static_cast<std::int64_t>(x.nbytes()) / size;
  const std::int64_t width = numbers / x.size(0);
  at::parallel_for(0, numbers, 65536 / size,
                   [&](std::int64_t first, std::int64_t end) { function(width, first, end); });
}

inline at::Tensor gathered(const at::Tensor& x, const at::Tensor& rows) {
  if (!has_rows(x)) return at::index_select(x, 0, rows);
  const at::Tensor y = empty_rows(x, rows.size(0)), at = rows.contiguous();
  if (for_gpu_rows(y, [&]<class T>(const auto& kernels, std::int64_t width, void* stream) {
        kernels.gather_rows(kernel_data<T>(y), kernel_data<const T>(x),
                            kernel_data<const std::int64_t>(at), at.size(0), width, stream);
      }))
    return y;
  for_positions(y, 1, [&](std::int64_t width, std::int64_t first, std::int64_t end) {
    cpu::gather_rows(kernel_data<char>(y), kernel_data<const char>(x),
                     kernel_data<const std::int64_t>(at), width, first, end);
  });
  return y;
}

/// Of x's rows those in `rows` are y's; x or y may be undefined, which is zeros.
inline at::Tensor merged(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& y,
                         std::int64_t count) {
  const at::Tensor out = empty_rows(x.defined() ? x : y, count), at = rows.contiguous();
  if (for_gpu_rows(out, [&]<class T>(const auto& kernels, std::int64_t width, void* stream) {
        kernels.merge_rows(kernel_data<T>(out), kernel_data<const T>(x), kernel_data<const T>(y),
                           kernel_data<const std::int64_t>(at), at.size(0), count, width, stream);
      }))
    return out;
  for_positions(out, 1, [&](std::int64_t width, std::int64_t first, std::int64_t end) {
    cpu::merge_rows(kernel_data<char>(out), kernel_data<const char>(x), kernel_data<const char>(y),
                    kernel_data<const std::int64_t>(at), at.size(0), width, first, end);
  });
  return out;
}

inline at::Tensor scattered(const at::Tensor& y, const at::Tensor& rows, std::int64_t count) {
  if (has_rows(y)) return merged({}, rows, y, count);
  return empty_rows(y, count).zero_().index_copy_(0, rows, y);
}

inline at::Tensor cleared(const at::Tensor& x, const at::Tensor& rows) {
  return has_rows(x) ? merged(x, rows, {}, x.size(0)) : at::index_fill(x, 0, rows, 0);
}

/// y, in memory of its own.
inline at::Tensor apart_from(const at::Tensor& x, const at::Tensor& y) {
  return y.is_alias_of(x) ? y.clone() : y;
}

inline void write_rows(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& some) {
  const at::Tensor y = apart_from(x, some), at = rows.contiguous();
  if (!has_rows(x) || !has_rows(y)) {
    x.index_copy_(0, rows, y);
    return;
  }
  if (for_gpu_rows(y, [&]<class T>(const auto& kernels, std::int64_t width, void* stream) {
        kernels.put_rows(kernel_data<T>(x), kernel_data<const T>(y),
                         kernel_data<const std::int64_t>(at), at.size(0), width, stream);
      }))
    return;
  for_positions(y, 1, [&](std::int64_t width, std::int64_t first, std::int64_t end) {
    cpu::put_rows(kernel_data<char>(x), kernel_data<const char>(y),
                  kernel_data<const std::int64_t>(at), width, first, end);
  });
}

inline void add_rows(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& some,
                     double scale) {
  const at::Tensor y = apart_from(x, some), at = rows.contiguous();
  if (!has_kernel(x) || !has_rows(x) || !has_rows(y)) {
    x.index_add_(0, rows, y, scale);
    return;
  }
  if (for_gpu_rows(y, [&]<class T>(const auto& kernels, std::int64_t width, void* stream) {
        kernels.scatter_add_rows(kernel_data<T>(x), kernel_data<const T>(y),
                                 kernel_data<const std::int64_t>(at), static_cast<float>(scale),
                                 at.size(0), width, stream);
      }))
    return;
  with_kernel_type(x, [&]<class T>() {
    for_positions(y, sizeof(T), [&](std::int64_t width, std::int64_t first, std::int64_t end) {
      cpu::scatter_add_rows(kernel_data<T>(x), kernel_data<const T>(y),
                            kernel_data<const std::int64_t>(at), static_cast<float>(scale), width,
                            first, end);
    });
  });
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct GatherRows : torch::autograd::Function<GatherRows> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& rows) {
    context->save_for_backward({rows});
    context->saved_data["count"] = x.size(0);
    return gathered(x, rows);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradient);
};

struct ScatterRows : torch::autograd::Function<ScatterRows> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& y, const at::Tensor& rows,
                            std::int64_t count) {
    context->save_for_backward({rows});
    return scattered(y, rows, count);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradient) {
    const at::Tensor rows = context->get_saved_variables()[0];
    return {GatherRows::apply(gradient[0], rows), at::Tensor(), at::Tensor()};
  }
};

inline variable_list GatherRows::backward(AutogradContext* context, const variable_list& gradient) {
  const at::Tensor rows = context->get_saved_variables()[0];
  return {ScatterRows::apply(gradient[0], rows, context->saved_data["count"].toInt()),
          at::Tensor()};
}

struct ScatterAddRows : torch::autograd::Function<ScatterAddRows> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& rows,
                            const at::Tensor& y, double scale) {
    context->mark_dirty({x});
    context->save_for_backward({rows});
    context->saved_data["scale"] = scale;
    add_rows(x, rows, y, scale);
    return x;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradient) {
    const double scale = context->saved_data["scale"].toDouble();
    at::Tensor its = GatherRows::apply(gradient[0], context->get_saved_variables()[0]);
    if (scale != 1) its = its * scale;
    return {gradient[0], at::Tensor(), its, at::Tensor()};
  }
};

/// x with zeros in `rows`.
struct ClearRows : torch::autograd::Function<ClearRows> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& rows) {
    context->save_for_backward({rows});
    return cleared(x, rows);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradient) {
    return {apply(gradient[0], context->get_saved_variables()[0]), at::Tensor()};
  }
};

struct PutRows : torch::autograd::Function<PutRows> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& rows,
                            const at::Tensor& y) {
    context->mark_dirty({x});
    context->save_for_backward({rows});
    write_rows(x, rows, y);
    return x;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradient) {
    const at::Tensor rows = context->get_saved_variables()[0];
    variable_list both(3);
    if (context->needs_input_grad(0)) both[0] = ClearRows::apply(gradient[0], rows);
    if (context->needs_input_grad(2)) both[2] = GatherRows::apply(gradient[0], rows);
    return both;
  }
};

}  // namespace detail

// Some rows of a tensor, by its first dimension: taken out, worked on, put back. A row is all that
// one index of it has: a token's numbers, or a whole sample's.
//
//     const at::Tensor some = gather_rows(x, rows);       // [k, ...]
//     scatter_add_rows_(x, rows, branch(some), scale);    // a residual branch for those alone, or
//     put_rows_(x, rows, block(some));                    // a whole block
//
// `rows`: int64 [k], ascending without repetition, on x's device. So one pass is enough, and the
// result the same for every number of threads; for other orders there are at::index_select and
// at::index_add. All have gradients of any order, for which they keep `rows` and nothing else.
//
// On the CPU they are one pass over memory that lies in a row, of any dtype (adding: float and
// bfloat16), and with droppeft::cuda on a GPU (float and bfloat16); everything else is LibTorch's
// own indexing.
//
// They throw std::invalid_argument for rows of another dtype, shape or device, out of range or
// order (on a GPU nobody looks), and tensors that do not match.

/// x [n, ...] -> y [k, ...]: y[i] = x[rows[i]]. Its gradient is scatter_rows.
inline at::Tensor gather_rows(const at::Tensor& x, const at::Tensor& rows) {
  check(x.dim() >= 1, "droppeft::gather_rows: x must have a dimension, got a scalar");
  detail::check_rows("gather_rows", x, rows, x.size(0));
  return detail::GatherRows::apply(x, rows);
}

/// y [k, ...] -> x [count, ...]: x[rows[i]] = y[i], and zeros elsewhere, as padding is. Its
/// gradient is gather_rows.
inline at::Tensor scatter_rows(const at::Tensor& y, const at::Tensor& rows, std::int64_t count) {
  detail::check_rows("scatter_rows", y, rows, count);
  check(y.dim() >= 1 && y.size(0) == rows.size(0),
        "droppeft::scatter_rows: y must have a row for each of the ", rows.size(0), ", got ",
        y.sizes());
  return detail::ScatterRows::apply(y, rows, count);
}

/// x[rows[i]] += scale y[i], in place; returns x [n, ...]. y [k, ...], of x's dtype.
inline at::Tensor scatter_add_rows_(const at::Tensor& x, const at::Tensor& rows,
                                    const at::Tensor& y, double scale = 1) {
  check(x.dim() >= 1, "droppeft::scatter_add_rows_: x must have a dimension, got a scalar");
  detail::check_rows("scatter_add_rows_", x, rows, x.size(0));
  detail::check_some("scatter_add_rows_", x, rows, y);
  return detail::ScatterAddRows::apply(x, rows, y, scale);
}

/// x[rows[i]] = y[i], in place; returns x [n, ...]. y [k, ...], of x's dtype.
inline at::Tensor put_rows_(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& y) {
  check(x.dim() >= 1, "droppeft::put_rows_: x must have a dimension, got a scalar");
  detail::check_rows("put_rows_", x, rows, x.size(0));
  detail::check_some("put_rows_", x, rows, y);
  return detail::PutRows::apply(x, rows, y);
}

}  // namespace droppeft
