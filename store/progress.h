#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace lamina::store {

/// What a long job tells while it runs. Called from the job's threads, one at a time; must be quick.
struct Progress {
    std::string phase;                   ///< "reading", "writing tree", ... one or two words.
    std::string item;                    ///< A layer's digest, an image's name.
    std::uint64_t done_bytes = 0;        ///< Of total_bytes.
    std::uint64_t total_bytes = 0;       ///< 0: not known.
    std::uint64_t item_done_bytes = 0;   ///< Of item_total_bytes: the same for the item alone.
    std::uint64_t item_total_bytes = 0;  ///< 0: not known, or not told.
};
using ProgressFunction = std::function<void(const Progress&)>;

}  // namespace lamina::store
