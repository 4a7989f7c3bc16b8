#pragma once

#include "client/api.h"
#include "client/connection.h"

#include <CLI/CLI.hpp>

#include <functional>
#include <string>

namespace lamina::client {

/// What stands before the command: which daemon, and how to print.
struct Globals {
    std::string store_option;
    std::string socket_option;
    bool json = false;
    int exit_status = 0;  ///< Set by a command that ends with another one's status.

    api::Places places() const { return api::default_places(store_option, socket_option); }
    Connection connect() const { return Connection(places(), true); }
};

/// Each adds its commands to `app`. A chosen command sets `run`; main() calls it once the arguments are known to be
/// good. `globals` and `run` must outlive the app.
struct CommandContext {
    CLI::App& app;
    Globals& globals;
    std::function<void()>& run;
};
void add_explain_command(const CommandContext& context);
void add_image_commands(const CommandContext& context);
void add_mount_commands(const CommandContext& context);
void add_registry_commands(const CommandContext& context);
void add_run_commands(const CommandContext& context);
void add_upkeep_commands(const CommandContext& context);

/// A relative path made absolute against the working folder, otherwise unchanged: the daemon has another one.
std::string absolute_path(const std::string& path);
/// "kind:path..." with the path made absolute; the daemon refuses what is no known kind.
std::string absolute_source(const std::string& source);

/// Mounts where this process is: by the daemon, or from here when it lives in another mount namespace. `request.start`
/// need not be set.
api::Mount mount_image(Connection& connection, api::MountRequest request);

}  // namespace lamina::client
