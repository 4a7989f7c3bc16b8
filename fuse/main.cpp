#include "fuse/background.h"
#include "fuse/control.h"
#include "fuse/directory_server.h"
#include "fuse/holder.h"
#include "fuse/kill_points.h"
#include "fuse/mount_options.h"
#include "fuse/mount_reader.h"
#include "fuse/mount_server.h"
#include "store/error.h"
#include "store/file_ops.h"

#include <malloc.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace lamina;
using unionfs::ServerOptions;

constexpr std::string_view kHandedOver = unionfs::kHandedOverOption;

/// EX_TEMPFAIL of sysexits.h.
constexpr int kTryAgainExit = 75;

int export_layer(const ServerOptions& options) {
    try {
        unionfs::run_export(options.mount_folder, STDOUT_FILENO);
        return 0;
    } catch (const store::Error& error) {
        if (error.code() != store::Errc::busy) throw;
        std::fprintf(stderr, "lamina-fuse: %s\n", error.what());
        return kTryAgainExit;
    }
}

int ask(const ServerOptions& options, const std::string& line) {
    const std::string answer = unionfs::ask_control(options.mount_folder, line);
    std::printf("%s\n", answer.c_str());
    return answer.starts_with("{\"ok\":true") ? 0 : 1;
}

std::string quota_question(const ServerOptions& options) {
    if (!options.quota) return R"({"ask":"quota"})";
    return R"({"ask":"quota","limit":")" + std::to_string(options.quota->bytes) + ":" +
           std::to_string(options.quota->inodes) + R"("})";
}

int serve_folders(const ServerOptions& options) {
    unionfs::DirectoryServer server(options);
    auto background = unionfs::Background::go(!options.stays_in_foreground);
    server.serve([&background] { background.ready(); });
    return 0;
}

int serve(ServerOptions options, char** arguments) {
    unionfs::close_inherited_files();
    unionfs::fill_standard_files();
    if (options.stack.is_wanted()) return serve_folders(options);
    unionfs::resolve_paths(options);
    auto background = unionfs::Background::go(!options.stays_in_foreground);
    unionfs::HolderLink holder = unionfs::hold({.arguments = arguments,
                                                .mount_folder = options.mount_folder.c_str(),
                                                .mountpoint = options.mountpoint.c_str(),
                                                .watchdog_ms = options.watchdog_ms,
                                                .stays_in_foreground = options.stays_in_foreground});
    // From here on a server. A step at which one was to die is that one's alone.
    unionfs::read_kill_points_from_environment();
    if (!holder.is_first()) {
        store::g_fault_hook = nullptr;
        unionfs::arm_kill_points();
    }
    unionfs::serve_mount(options, holder, [&background] {
        unionfs::arm_kill_points();
        background.ready();
    });
    return 0;
}

int run(const ServerOptions& options, char** arguments) {
    for (const auto& warning : options.warnings) std::fprintf(stderr, "lamina-fuse: %s\n", warning.c_str());
    switch (options.action) {
        case ServerOptions::Action::serve:
            return serve(options, arguments);
        case ServerOptions::Action::stats:
            return ask(options, R"({"ask":"stats"})");
        case ServerOptions::Action::sync:
            return ask(options, R"({"ask":"sync"})");
        case ServerOptions::Action::upgrade:
            unionfs::upgrade_server(options.mount_folder);
            return 0;
        case ServerOptions::Action::stop:
            return ask(options, options.is_forced ? R"({"ask":"stop","force":true})" : R"({"ask":"stop"})");
        case ServerOptions::Action::quota:
            return ask(options, quota_question(options));
        case ServerOptions::Action::version:
            std::printf("lamina-fuse %s\n", LAMINA_VERSION);
            return 0;
        case ServerOptions::Action::help:
            std::fputs(unionfs::kServerHelp, stdout);
            return 0;
        case ServerOptions::Action::diff:
            unionfs::run_diff(options.mount_folder, {}, STDOUT_FILENO);
            return 0;
        case ServerOptions::Action::export_layer:
            return export_layer(options);
    }
    return 2;
}

/// A server of this program that the holder of another one has started: how many descriptors there are, mount folder
/// and mount point stand before the command line of the mount.
int serve_next(char** argv) {
    constexpr int kOwnWords = 4;
    std::vector<std::string> words;
    for (char** word = argv + kOwnWords; *word != nullptr; ++word) words.emplace_back(*word);
    ServerOptions options = unionfs::parse_server_options(words);
    options.mount_folder = argv[2];
    options.mountpoint = argv[3];
    unionfs::HolderLink holder = unionfs::handed_over(std::strtoul(argv[1] + kHandedOver.size(), nullptr, 10));
    unionfs::serve_mount(options, holder, {});
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    // File data comes and goes in pieces of 256 KiB: each that is given back and asked for again costs 64 page faults.
    ::mallopt(M_MMAP_THRESHOLD, 1 << 20);
    ::mallopt(M_TRIM_THRESHOLD, 1 << 20);
    const bool is_next = argc >= 4 && std::string_view(argv[1]).starts_with(kHandedOver);
    ServerOptions options;
    try {
        if (!is_next) options = unionfs::parse_server_options(std::vector<std::string>(argv + 1, argv + argc));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "lamina-fuse: %s\n", error.what());
        return 2;
    }
    try {
        store::install_fault_hook_from_environment();
        return is_next ? serve_next(argv) : run(options, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "lamina-fuse: %s\n", error.what());
        return 1;
    }
}
