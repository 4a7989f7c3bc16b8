// Options of -o are those of mount(8), fuse-overlayfs and ours, separated by commas; empty ones are skipped, unknown
// ones give a warning only, as programs that mount pass on what their users wrote.
#include "fuse/mount_options.h"

#include "store/error.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <optional>
#include <string_view>

namespace lamina::unionfs {
namespace {

constexpr std::uint64_t kLeastCacheBytes = 1 << 20;
constexpr std::uint64_t kMostCacheBytes = std::uint64_t{64} << 30;
constexpr std::size_t kPathLimitBytes = 4095;

[[noreturn]] void refuse(const std::string& why) {
    throw store::Error(store::Errc::malformed, why + " (try --help)");
}

// Mount flags and options of other programs that change nothing here: access times are the server's, not the kernel's.
bool is_harmless(std::string_view name) {
    constexpr std::array kNames = {"rw",        "default_permissions",
                                   "auto",      "allow_other",
                                   "noauto",    "user",
                                   "nouser",    "users",
                                   "_netdev",   "nofail",
                                   "atime",     "diratime",
                                   "relatime",  "norelatime",
                                   "lazytime",  "strictatime",
                                   "exec",      "nostrictatime",
                                   "sync",      "nolazytime",
                                   "async",     "defaults",
                                   "dirsync",   "remount",
                                   "nodiratime"};
    return std::ranges::find(kNames, name) != kNames.end();
}

QuietReader reader_of(const std::string& text) {
    if (text == "auto") return QuietReader::when_it_pays;
    if (text == "plain") return QuietReader::never;
    if (text == "eager") return QuietReader::eagerly;
    refuse("-o reader: auto, plain or eager");
}

/// Seconds, with decimals or without.
unsigned milliseconds_of(const std::string& text) {
    constexpr double kMostSeconds = 86'400;
    double seconds = -1;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), seconds, std::chars_format::fixed);
    const bool is_whole = parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
    if (!is_whole || !(seconds >= 0 && seconds <= kMostSeconds)) refuse("-o watchdog=" + text + ": 0 to 86400 seconds");
    return static_cast<unsigned>(seconds * 1000);
}

void apply_option(ServerOptions& options, const std::string& option) {
    const std::size_t equals = option.find('=');
    const std::string name = option.substr(0, equals);
    const auto value = equals == std::string::npos ? std::optional<std::string>() : option.substr(equals + 1);
    if (name == "ro" && !value) {
        options.is_read_only = true;
    } else if ((name == "dev" || name == "nodev") && !value) {
        options.allows_devices = name == "dev";
    } else if ((name == "suid" || name == "nosuid") && !value) {
        options.allows_set_id = name == "suid";
    } else if ((name == "noexec" || name == "noatime") && !value) {
        options.mount_flags.push_back(name);
    } else if (name == "cache" && value) {
        options.cache_bytes = parse_size(*value);
        if (options.cache_bytes < kLeastCacheBytes || options.cache_bytes > kMostCacheBytes) {
            refuse("-o cache=" + *value + ": between 1M and 64G");
        }
    } else if (name == "quota") {
        options.quota = parse_quota(value.value_or(""));
    } else if (name == "reader") {
        options.quiet_reader = reader_of(value.value_or(""));
    } else if (name == "watchdog") {
        options.watchdog_ms = milliseconds_of(value.value_or(""));
    } else if (name == "resend") {
        if (value != "on" && value != "off") refuse("-o resend: on or off");
        options.allows_resend = value == "on";
    } else if (!is_harmless(name) && !apply_stack_option(options.stack, name, value)) {
        options.warnings.push_back(fmt::format("option {} is not known and has no effect", name));
    }
}

void apply_options(ServerOptions& options, const std::string& list) {
    for (const std::string& option : split_options(list)) apply_option(options, option);
}

std::string checked_path(const std::string& path, std::string_view what) {
    if (path.empty() || path.size() > kPathLimitBytes) refuse(fmt::format("{}: a path of 1 to 4095 bytes", what));
    return path;
}

/// Goes through the words of a command line.
class CommandLine {
public:
    CommandLine(ServerOptions& options, const std::vector<std::string>& words) : options_(options), words_(words) {}
    void run() {
        while (at_ < words_.size()) take(words_[at_++]);
        // mount(8) and its kind name a source in front of the mount point; it is what the mount is shown as.
        if (places_.size() > 2) refuse(places_[2] + ": one mount point is enough");
        options_.has_two_places = places_.size() == 2;
        if (places_.size() == 2 && options_.stack.source_name.empty()) options_.stack.source_name = places_[0];
        if (!places_.empty()) options_.mountpoint = checked_path(places_.back(), "mount point");
    }

private:
    using Action = ServerOptions::Action;

    const std::string& value_of(const std::string& option) {
        if (at_ == words_.size()) refuse(option + ": a value is missing");
        return words_[at_++];
    }
    void set_action(Action action) {
        if (options_.action != Action::serve && options_.action != action) refuse("more than one thing to do");
        options_.action = action;
    }
    void take(const std::string& word) {
        static const std::map<std::string, Action> kActions = {
            {"--upgrade", Action::upgrade}, {"--stats", Action::stats}, {"--stop", Action::stop},
            {"--sync", Action::sync},       {"--diff", Action::diff},   {"--export", Action::export_layer},
            {"--version", Action::version}, {"-V", Action::version},    {"--help", Action::help},
            {"-h", Action::help},           {"--quota", Action::quota},
        };
        if (const auto found = kActions.find(word); found != kActions.end()) {
            set_action(found->second);
        } else if (word.starts_with("--quota=")) {
            set_action(Action::quota);
            options_.quota = parse_quota(std::string_view(word).substr(8));
        } else if (word == "-o") {
            apply_options(options_, value_of(word));
        } else if (word.starts_with("-o")) {
            apply_options(options_, word.substr(2));
        } else if (word == "--state") {
            options_.mount_folder = checked_path(value_of(word), word);
        } else if (word.starts_with("--state=")) {
            options_.mount_folder = checked_path(word.substr(8), "--state");
        } else if (word == "-f" || word == "-d") {
            options_.stays_in_foreground = true;
            options_.is_debug = options_.is_debug || word == "-d";
        } else if (word == "-s") {
            // Few threads are all there ever are.
        } else if (word == "--force") {
            options_.is_forced = true;
        } else if (word.starts_with("-")) {
            refuse(word + ": unknown option");
        } else {
            places_.push_back(word);
        }
    }

    ServerOptions& options_;
    const std::vector<std::string>& words_;
    std::vector<std::string> places_;
    std::size_t at_ = 0;
};

}  // namespace

const char* const kServerHelp =
    "usage: lamina-fuse -o lowerdir=A:B[,upperdir=U,workdir=W][,OPTIONS] [-f] [-d] [SOURCE] MOUNTPOINT\n"
    "       lamina-fuse --state <store>/mounts/<id> [-o OPTIONS] [-f] [-d] MOUNTPOINT\n"
    "       lamina-fuse --state <store>/mounts/<id> --stats | --sync | --upgrade | --stop [--force]\n"
    "       lamina-fuse --state <store>/mounts/<id> --diff | --export\n"
    "       lamina-fuse --state <store>/mounts/<id> | WORKDIR --quota[=BYTES[:INODES]]\n"
    "\n"
    "Serves one mount of folders, the first of them on top; the upper one takes all changes. Or of an image: reads "
    "<store>/mounts/<id>/base and what was changed before, mounts, and goes to "
    "the\n"
    "background when the mount is usable. Ends by itself when it is unmounted, and on SIGTERM.\n"
    "\n"
    "  --state DIR   the mount's folder in the store\n"
    "  -f            stay in the foreground        -d  likewise, and print each request\n"
    "  -o ro         read-only                     -o dev, nosuid  device files work; set-id bits do not\n"
    "  -o cache=8M  memory for file data           -o reader=plain  never the quiet reading thread\n"
    "  -o quota=BYTES[:INODES]  what the changes may take; K, M, G, T; 0: no limit, but one can be set later\n"
    "  --quota       the limits and what is used, as JSON; --quota=BYTES[:INODES] sets new ones\n"
    "  --stats       the running server's counters, as JSON\n"
    "  --sync        make all changes durable      --stop  sync, unmount, end; --force: though files are open\n"
    "  --upgrade     this program takes the place of the one that serves; no file is closed\n"
    "  --diff        what was changed, as JSON     --export  what was changed, as a layer tar on standard output\n"
    "  --version     print the version             --help  print this\n";

std::uint64_t parse_size(const std::string& text) {
    std::uint64_t number = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
    std::string_view unit(parsed.ptr, static_cast<std::size_t>(text.data() + text.size() - parsed.ptr));
    int shift = 0;
    if (unit == "K") {
        shift = 10;
    } else if (unit == "M") {
        shift = 20;
    } else if (unit == "G") {
        shift = 30;
    } else if (!unit.empty()) {
        refuse(text + ": not a size");
    }
    if (parsed.ec != std::errc() || number > (std::uint64_t{1} << 62) >> shift) refuse(text + ": not a size");
    return number << shift;
}

ServerOptions parse_server_options(const std::vector<std::string>& arguments) {
    ServerOptions options;
    CommandLine(options, arguments).run();
    using Action = ServerOptions::Action;
    if (options.action == Action::help || options.action == Action::version) return options;
    const bool is_of_folders = options.stack.is_wanted();
    if (options.mount_folder.empty() && !is_of_folders) refuse("--state or -o lowerdir= is missing");
    if (is_of_folders && !options.mount_folder.empty()) refuse("--state and -o lowerdir= exclude each other");
    if (is_of_folders && options.action != Action::serve) refuse("this can be asked of a mount with --state only");
    if (is_of_folders && options.stack.lowers.empty() && !options.stack.has_images()) refuse("-o lowerdir= is missing");
    if (!is_of_folders && options.has_two_places) refuse("one mount point is enough");
    if (options.action == Action::serve && options.mountpoint.empty()) refuse("the mount point is missing");
    if (options.action != Action::serve && !options.mountpoint.empty()) {
        refuse(options.mountpoint + ": no mount point is wanted here");
    }
    return options;
}

}  // namespace lamina::unionfs
