#pragma once

#include "client/api.h"

#include <string>

namespace lamina::daemon {

struct Config {
    api::Places places;
    std::string mount_program;
    bool is_detached = false;
};

/// From the command line. Prints and exits for --help, --version (0) and wrong usage (2).
Config parse_command_line(int argument_count, char** arguments);

}  // namespace lamina::daemon
