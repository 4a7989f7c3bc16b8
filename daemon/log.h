#pragma once

#include <string>

/// Structured lines with time and level, to standard error or to a file that is cut at 1 MiB (one old one is kept).
/// Thread-safe. Values from outside are escaped, so that a line is a line.
namespace lamina::daemon::log {

void to_stderr();
void to_file(const std::string& path);
void info(const std::string& text);
void warning(const std::string& text);
void error(const std::string& text);

}  // namespace lamina::daemon::log
