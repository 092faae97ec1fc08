#pragma once

#include <algorithm>
#include <initializer_list>
#include <regex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"

namespace droppeft {

/// Which modules of a model an adapter goes to, chosen by name, with Hugging Face peft's meaning.
///
/// A list of names takes every module whose path is that name or ends in ".name"; one string is a
/// regular expression (ECMAScript) that the whole path must match. "all-linear" takes every one.
class Targets {
 public:
  Targets(std::initializer_list<const char*> names) : names_(names.begin(), names.end()) {}
  explicit Targets(std::vector<std::string> names) : names_(std::move(names)) {}

  /// Throws std::invalid_argument when `pattern` is not a regular expression.
  Targets(const char* pattern)
      : pattern_(pattern) {  // NOLINT: a bare pattern is how users write it
    if (pattern_ == "all-linear") return;
    try {
      expression_ = std::regex(pattern_);
    } catch (const std::regex_error& error) {
      check(false, "Targets: '", pattern, "' is not a regular expression: ", error.what());
    }
  }

  bool match(std::string_view path) const {
    if (pattern_ == "all-linear") return true;
    if (!pattern_.empty()) return std::regex_match(path.begin(), path.end(), expression_);
    return std::any_of(names_.begin(), names_.end(),
                       [path](std::string_view name) { return is_called(path, name); });
  }

  /// Whether `path` is `name` or ends in ".name".
  static bool is_called(std::string_view path, std::string_view name) {
    return path == name || (path.size() > name.size() && path.ends_with(name) &&
                            path[path.size() - name.size() - 1] == '.');
  }

  /// The names of a list; none for a regular expression.
  const std::vector<std::string>& names() const { return names_; }

  /// The regular expression, or "all-linear"; empty for a list.
  const std::string& pattern() const { return pattern_; }

 private:
  std::vector<std::string> names_;
  std::string pattern_;
  std::regex expression_;
};

}  // namespace droppeft
