#pragma once

#include "support/random_user.h"

#include <optional>
#include <string>
#include <vector>

namespace lamina::test {

/// The states that a RandomUser leads a mount through, one after each step; the first is the untouched one.
class Prefixes {
public:
    /// Leads a mount in a folder of its own through `steps` steps.
    Prefixes(std::uint32_t seed, unsigned steps, const MemoryView& view);
    /// The last step after which the mount looked so; nullopt: it never did.
    std::optional<std::size_t> find(const std::string& text) const;
    const std::string& at(std::size_t step) const { return texts_.at(step); }
    std::size_t size() const { return texts_.size(); }

private:
    std::vector<std::string> texts_;
};

}  // namespace lamina::test
