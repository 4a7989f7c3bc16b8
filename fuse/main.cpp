#include "fuse/background.h"
#include "fuse/control.h"
#include "fuse/directory_server.h"
#include "fuse/mount_options.h"
#include "fuse/mount_reader.h"
#include "fuse/mount_server.h"
#include "store/error.h"
#include "store/file_ops.h"

#include <unistd.h>

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace {

using namespace lamina;
using unionfs::ServerOptions;

int ask(const ServerOptions& options, const std::string& line) {
    const std::string answer = unionfs::ask_control(options.mount_folder, line);
    std::printf("%s\n", answer.c_str());
    return answer.starts_with("{\"ok\":true") ? 0 : 1;
}

int serve_folders(const ServerOptions& options) {
    unionfs::DirectoryServer server(options);
    auto background = unionfs::Background::go(!options.stays_in_foreground);
    server.serve([&background] { background.ready(); });
    return 0;
}

int serve(const ServerOptions& options) {
    unionfs::close_inherited_files();
    unionfs::fill_standard_files();
    if (options.stack.is_wanted()) return serve_folders(options);
    auto background = unionfs::Background::go(!options.stays_in_foreground);
    unionfs::serve_mount(options, [&background] { background.ready(); });
    return 0;
}

int run(const ServerOptions& options) {
    for (const auto& warning : options.warnings) std::fprintf(stderr, "lamina-fuse: %s\n", warning.c_str());
    switch (options.action) {
        case ServerOptions::Action::serve:
            return serve(options);
        case ServerOptions::Action::stats:
            return ask(options, R"({"ask":"stats"})");
        case ServerOptions::Action::sync:
            return ask(options, R"({"ask":"sync"})");
        case ServerOptions::Action::stop:
            return ask(options, options.is_forced ? R"({"ask":"stop","force":true})" : R"({"ask":"stop"})");
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
            unionfs::run_export(options.mount_folder, STDOUT_FILENO);
            return 0;
    }
    return 2;
}

}  // namespace

int main(int argc, char** argv) {
    ServerOptions options;
    try {
        options = unionfs::parse_server_options(std::vector<std::string>(argv + 1, argv + argc));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "lamina-fuse: %s\n", error.what());
        return 2;
    }
    try {
        store::install_fault_hook_from_environment();
        return run(options);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "lamina-fuse: %s\n", error.what());
        return 1;
    }
}
