#include "client/commands.h"
#include "client/mount_helper.h"
#include "client/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace lamina;

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

/// Everybody may read a process's arguments: a password goes from there as soon as it is known.
void hide_credentials(int count, char** arguments) {
    constexpr std::string_view kOption = "--creds";
    for (int i = 1; i < count; ++i) {
        const std::string_view word = arguments[i];
        std::size_t begin = word.size();
        if (word.starts_with(std::string(kOption) + "=")) begin = kOption.size() + 1;
        if (i > 1 && arguments[i - 1] == kOption) begin = 0;
        std::fill(arguments[i] + begin, arguments[i] + word.size(), '*');
    }
}

int report(const client::Globals& globals, const api::Failure& failure) {
    if (globals.json) {
        const boost::json::value text = {{"error", boost::json::value_from(failure)}};
        fmt::print(stderr, "{}\n", boost::json::serialize(text));
    } else {
        fmt::print(stderr, "lamina: {}\n", client::printable(failure.message));
    }
    return failure.code == "usage" ? kExitUsage : kExitFailed;
}

}  // namespace

int main(int argument_count, char** arguments) {
    const std::vector<std::string> words(arguments + 1, arguments + argument_count);
    if (client::is_helper_call(words)) return client::run_mount_helper(words);
    CLI::App app("Lamina keeps container images, each byte once, and mounts them.", "lamina");
    client::Globals globals;
    std::function<void()> run;
    app.add_option("--store", globals.store_option, "Folder of the store (also $LAMINA_STORE)");
    app.add_option("--socket", globals.socket_option, "The daemon's socket (also $LAMINA_SOCKET)");
    app.add_flag("--json", globals.json, "Print JSON");
    app.set_version_flag("--version", "lamina " + std::string(api::kVersion));
    app.require_subcommand(1);
    app.fallthrough();
    const client::CommandContext context{app, globals, run};
    client::add_image_commands(context);
    client::add_mount_commands(context);
    client::add_registry_commands(context);
    client::add_run_commands(context);
    client::add_explain_command(context);
    client::add_upkeep_commands(context);
    for (CLI::App* const command : app.get_subcommands({})) command->fallthrough(!command->get_prefix_command());
    try {
        app.parse(argument_count, arguments);
    } catch (const CLI::ParseError& error) {
        const int status = app.exit(error);
        return status == 0 ? 0 : kExitUsage;
    }
    hide_credentials(argument_count, arguments);
    try {
        run();
        return globals.exit_status;
    } catch (const api::FailureError& error) {
        return report(globals, error.failure());
    } catch (const std::exception& error) {
        return report(globals, {"internal", error.what()});
    }
}
