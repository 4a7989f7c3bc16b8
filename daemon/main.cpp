// Options, then (with --detach) the fork while there is still one thread, then the store, then the socket. The parent
// of a detached daemon waits for one line on a pipe: empty when the socket serves, else why not.

#include "daemon/background_completion.h"
#include "daemon/config.h"
#include "daemon/handlers.h"
#include "daemon/idle_upkeep.h"
#include "daemon/log.h"
#include "daemon/mounts.h"
#include "daemon/server.h"
#include "daemon/size_limit.h"
#include "store/digest.h"
#include "store/error.h"
#include "store/file.h"
#include "store/file_ops.h"
#include "store/store.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>

namespace {

using namespace lamina;

constexpr int kExitFailed = 1;
constexpr int kExitBusy = 3;
constexpr auto kScrubPause = std::chrono::days(30);

/// The child's end of the pipe to the waiting parent; invalid when not detached.
using ReadyPipe = store::UniqueFd;

/// In the parent: waits for the child's word and exits. In the child: returns the pipe.
ReadyPipe detach() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) store::throw_errno(errno, "pipe");
    ReadyPipe read_end(ends[0]);
    ReadyPipe write_end(ends[1]);
    const pid_t child = ::fork();
    if (child < 0) store::throw_errno(errno, "fork");
    if (child == 0) {
        ::setsid();
        return write_end;
    }
    write_end = ReadyPipe();
    std::array<char, 4096> word{};
    std::size_t length = 0;
    while (length + 1 < word.size()) {
        const ssize_t got = ::read(read_end.get(), word.data() + length, word.size() - 1 - length);
        if (got <= 0) break;
        length += static_cast<std::size_t>(got);
    }
    if (length > 0 && word[0] == '+') std::_Exit(0);
    std::fprintf(stderr, "%s", length > 1 ? word.data() + 1 : "laminad: ended before it served\n");
    std::_Exit(length > 0 && word[0] == 'b' ? kExitBusy : kExitFailed);
}

void tell(ReadyPipe& ready, char kind, const std::string& text) {
    const std::string word = kind + text;
    if (ready && ::write(ready.get(), word.data(), word.size()) < 0) return;  // The parent is gone: nobody to tell.
}

void leave_terminal() {
    const store::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null.get(), fd);
}

std::string own_mount_namespace() {
    std::error_code error;
    return std::filesystem::read_symlink("/proc/self/ns/mnt", error).string();
}

void run(const daemon::Config& config, ReadyPipe& ready) {
    const auto store = store::Store::open(config.places.store);
    boost::asio::io_context context(1);
    daemon::Mounts mounts(*store, config.mount_program, config.requires_verified);
    mounts.prune();
    std::function<void()> stop;
    const api::Ping ping{.version = std::string(api::kVersion),
                         .pid = ::getpid(),
                         .store = config.places.store,
                         .mount_namespace = own_mount_namespace(),
                         .mount_program = config.mount_program};
    const daemon::SizeLimit size_limit(*store, mounts, config.max_bytes);
    daemon::IdleUpkeep upkeep(
        [&](const std::stop_token& end) {
            const auto report = store->upkeep({.bytes_per_second = config.upkeep_bytes_per_second,
                                               .scrubs = true,
                                               .scrub_pause_seconds = std::chrono::seconds(kScrubPause).count(),
                                               .is_background = true,
                                               .progress = {}},
                                              end);
            size_limit.keep({}, end);
            return report;
        },
        config.upkeep_after);
    daemon::BackgroundCompletion completion({.images = [&] { return mounts.running_images(); },
                                             .complete =
                                                 [&](const std::string& image, const std::stop_token& end) {
                                                     const store::Completion how{
                                                         .is_background = true,
                                                         .bytes_per_second = config.complete_bytes_per_second};
                                                     store->complete({image, how}, end);
                                                 }},
                                            config.complete_after);
    const daemon::Handlers handlers(*store, mounts,
                                    {.ping = ping,
                                     .stop = [&stop] { stop(); },
                                     .upkeep = &upkeep,
                                     .size_limit = &size_limit,
                                     .completion = &completion});
    daemon::Server server(context, config.places.socket, handlers);
    stop = [&server] { server.stop(); };
    server.start();
    store::write_file_atomically(config.places.store + "/socket", store::as_bytes(config.places.socket));
    if (config.is_detached) daemon::log::to_file(config.places.socket + ".log");
    daemon::log::info("serving " + config.places.store + " at " + config.places.socket);
    tell(ready, '+', "");
    if (ready) leave_terminal();
    ready = ReadyPipe();
    context.run();
    daemon::log::info("ended");
}

}  // namespace

int main(int argument_count, char** arguments) {
    const daemon::Config config = daemon::parse_command_line(argument_count, arguments);
    std::signal(SIGPIPE, SIG_IGN);
    store::install_fault_hook_from_environment();
    ReadyPipe ready;
    try {
        daemon::log::to_stderr();
        if (config.is_detached) ready = detach();
        run(config, ready);
        return 0;
    } catch (const store::Error& error) {
        const std::string text = std::string("laminad: ") + error.what() + "\n";
        const bool is_busy = error.code() == store::Errc::busy;
        tell(ready, is_busy ? 'b' : '-', text);
        if (!config.is_detached) std::fputs(text.c_str(), stderr);
        return is_busy ? kExitBusy : kExitFailed;
    } catch (const std::exception& error) {
        const std::string text = std::string("laminad: ") + error.what() + "\n";
        tell(ready, '-', text);
        if (!config.is_detached) std::fputs(text.c_str(), stderr);
        return kExitFailed;
    }
}
