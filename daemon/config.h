#pragma once

#include "client/api.h"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace lamina::daemon {

struct Config {
    api::Places places;
    std::string mount_program;
    bool is_detached = false;
    std::chrono::seconds upkeep_after{0};                ///< Of idle time; 0: never.
    std::uint64_t upkeep_bytes_per_second = 0;           ///< 0: no limit.
    std::uint64_t max_bytes = 0;                         ///< Of the whole store; 0: no limit.
    std::optional<std::chrono::seconds> complete_after;  ///< nullopt: never.
    std::uint64_t complete_bytes_per_second = 0;         ///< 0: no limit.
    bool requires_verified = false;                      ///< Mounts no image that is not.
};

/// From the command line. Prints and exits for --help, --version (0) and wrong usage (2).
Config parse_command_line(int argument_count, char** arguments);

}  // namespace lamina::daemon
