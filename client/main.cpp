#include "client/commands.h"
#include "client/mount_helper.h"
#include "client/output.h"

#include <fmt/format.h>

#include <cstdio>

namespace {

using namespace lamina;

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

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
    client::add_run_commands(context);
    client::add_upkeep_commands(context);
    for (CLI::App* const command : app.get_subcommands({})) command->fallthrough(!command->get_prefix_command());
    try {
        app.parse(argument_count, arguments);
    } catch (const CLI::ParseError& error) {
        const int status = app.exit(error);
        return status == 0 ? 0 : kExitUsage;
    }
    try {
        run();
        return globals.exit_status;
    } catch (const api::FailureError& error) {
        return report(globals, error.failure());
    } catch (const std::exception& error) {
        return report(globals, {"internal", error.what()});
    }
}
