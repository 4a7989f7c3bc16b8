#include "daemon/config.h"

#include "daemon/size_limit.h"

#include <CLI/CLI.hpp>

#include <cstdlib>

namespace lamina::daemon {

namespace {
constexpr int kExitUsage = 2;
constexpr unsigned kUpkeepAfterSeconds = 60;
constexpr const char* kCompleteDefault = "60";
constexpr unsigned kMaxCompleteSeconds = 365 * 24 * 3600;

std::uint64_t parse_max_bytes(const std::string& text) {
    const std::uint64_t bytes = text.empty() ? 0 : api::parse_size(text);
    if (bytes == 0 || bytes >= SizeLimit::kLeastBytes) return bytes;
    throw api::FailureError({"usage", "max-bytes " + text + ": too little for a store; at least " +
                                          std::to_string(SizeLimit::kLeastBytes >> 20) + "M"});
}

void add_completion_options(CLI::App& app, Config& config, std::string& when) {
    app.add_option(
           "--complete", when,
           "Fetch the rest of lazy images that are mounted, and verify them: off, on, or once nobody has waited "
           "for bytes of them for so many seconds")
        ->envname("LAMINA_COMPLETE")
        ->check(CLI::IsMember({"off", "on"}) | CLI::Range(0u, kMaxCompleteSeconds))
        ->capture_default_str();
    app.add_option("--complete-rate", config.complete_bytes_per_second,
                   "And at most so many bytes a second; 0: no limit")
        ->envname("LAMINA_COMPLETE_RATE")
        ->transform(CLI::AsSizeValue(false));
    app.add_flag("--require-verified", config.requires_verified, "Mount no image that is not verified")
        ->envname("LAMINA_REQUIRE_VERIFIED");
}

}  // namespace

Config parse_command_line(int argument_count, char** arguments) {
    CLI::App app("Lamina's daemon: keeps the store, answers on a Unix socket. lamina starts it when it is needed.",
                 "laminad");
    std::string store;
    std::string socket;
    Config config;
    app.add_option("--store", store, "Folder of the store");
    app.add_option("--socket", socket, "Socket to listen at");
    app.add_flag("--detach", config.is_detached, "Go into the background once the socket serves; log beside it");
    unsigned upkeep_after_seconds = kUpkeepAfterSeconds;
    app.add_option("--upkeep-after", upkeep_after_seconds,
                   "Compress the store densely once nothing was asked of it for so many seconds; 0: never")
        ->envname("LAMINA_UPKEEP_AFTER")
        ->capture_default_str();
    app.add_option("--upkeep-rate", config.upkeep_bytes_per_second, "And at most so many bytes a second; 0: no limit")
        ->envname("LAMINA_UPKEEP_RATE")
        ->transform(CLI::AsSizeValue(false));
    std::string max_bytes;
    app.add_option("--max-bytes", max_bytes,
                   "What the store may have on disk (10G): what was used longest ago goes first; 0: no limit")
        ->envname("LAMINA_MAX_BYTES");
    std::string complete = kCompleteDefault;
    add_completion_options(app, config, complete);
    app.set_version_flag("--version", "laminad " + std::string(api::kVersion));
    try {
        app.parse(argument_count, arguments);
        config.places = api::default_places(store, socket);
        api::check_socket_path(config.places.socket);
        config.max_bytes = parse_max_bytes(max_bytes);
    } catch (const CLI::ParseError& error) {
        std::exit(app.exit(error) == 0 ? 0 : kExitUsage);
    } catch (const api::FailureError& error) {
        std::fprintf(stderr, "laminad: %s\n", error.what());
        std::exit(kExitUsage);
    }
    if (complete == "on") complete = "0";
    if (complete != "off") config.complete_after = std::chrono::seconds(std::stoul(complete));
    config.upkeep_after = std::chrono::seconds(upkeep_after_seconds);
    config.mount_program = api::companion_program("lamina-fuse", "fuse");
    return config;
}

}  // namespace lamina::daemon
