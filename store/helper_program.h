#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace lamina::store {

struct HelperResult {
    int exit_status = 0;  ///< 128 + N when signal N ended it.
    std::string output;
};

/// Runs a short program found through PATH: `input` (at most 4 KiB) on its standard input, standard error discarded.
/// Throws unavailable when it cannot be started, timed_out when it runs longer than `limit` (it is killed), malformed
/// when it prints more than 64 KiB.
HelperResult run_helper(const std::vector<std::string>& words, const std::string& input, std::chrono::seconds limit);

}  // namespace lamina::store
