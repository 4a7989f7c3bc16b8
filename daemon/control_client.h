#pragma once

#include <boost/json.hpp>

#include <chrono>
#include <string>
#include <string_view>

namespace lamina::daemon {

/// Asks a mount's server through <mount folder>/control: one JSON line there, one back ({"ok":true,...}). Throws
/// unavailable when no server listens, timed_out, and what an {"ok":false,"error":TEXT} reply says: as malformed,
/// read_only or no_space when it says so, else as busy.
boost::json::object ask_server(const std::string& mount_folder, std::string_view what, std::chrono::milliseconds limit);
boost::json::object ask_server(const std::string& mount_folder, const boost::json::object& question,
                               std::chrono::milliseconds limit);

/// True while a server holds the mount's lock.
bool is_running(const std::string& mount_folder);

}  // namespace lamina::daemon
