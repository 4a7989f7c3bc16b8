// mount(8) takes what concerns fstab out of the options, but not always: the types fuse.NAME go through mount.fuse,
// which adds some of its own. So all of that is dropped here once more. An option that nobody knows goes to the server,
// which warns and goes on, as with other filesystems in user space.

#include "client/mount_helper.h"

#include "client/commands.h"

#include <sys/mount.h>
#include <sys/wait.h>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spawn.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>

extern char** environ;

namespace lamina::client {

namespace {

constexpr int kExitUsage = 1;
constexpr int kExitFailed = 32;
constexpr std::size_t kMaxNameBytes = 128;

constexpr std::string_view kHelp =
    "usage: mount.lamina IMAGE DIR [-fnsv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]\n"
    "       mount.lamina NAME DIR -o lowerdir=A:B[,upperdir=U,workdir=W]\n"
    "\n"
    "What mount(8) calls for `mount -t lamina IMAGE DIR`; see mount.lamina(8).\n";

[[noreturn]] void usage(const std::string& why) {
    throw api::FailureError({"usage", why + " (try --help)"});
}

/// Options are separated by commas; those between double quotes separate nothing, and the quotes go.
std::vector<std::string> split_options(std::string_view list) {
    std::vector<std::string> options{""};
    bool is_quoted = false;
    for (const char letter : list) {
        if (letter == '"') {
            is_quoted = !is_quoted;
        } else if (letter == ',' && !is_quoted) {
            options.emplace_back();
        } else {
            options.back() += letter;
        }
    }
    std::erase(options, "");
    return options;
}

/// Of mount(8), fstab and systemd.
bool is_for_others(std::string_view name) {
    constexpr std::array kNames = {"auto",  "noauto", "nofail", "_netdev", "defaults", "user",    "nouser",
                                   "users", "owner",  "group",  "comment", "nogroup",  "noowner", "nousers"};
    return std::find(kNames.begin(), kNames.end(), name) != kNames.end() || name.starts_with("x-") ||
           name.starts_with("X-");
}

void take_option(HelperCall& call, const std::string& option) {
    const auto equals = option.find('=');
    const std::string name = option.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : option.substr(equals + 1);
    if (is_for_others(name)) return;
    if (option == "ro" || option == "rw") {
        call.is_read_only = option == "ro";
    } else if (option == "remount") {
        call.is_remount = true;
    } else if (name == "store") {
        call.store = value;
    } else if (name == "socket") {
        call.socket = value;
    } else if (name == "name") {
        call.name = value;
    } else {
        call.has_folders = call.has_folders || name == "lowerdir" || name == "image";
        call.options.push_back(option);
    }
}

std::string joined(const std::vector<std::string>& options) {
    return fmt::format("{}", fmt::join(options, ","));
}

std::string real_folder(const std::string& path) {
    std::error_code error;
    const std::filesystem::path real = std::filesystem::canonical(path, error);
    if (error) throw api::FailureError({"not_found", "mount point " + path + ": " + error.message()});
    if (!std::filesystem::is_directory(real, error)) {
        throw api::FailureError({"malformed", "mount point " + path + ": not a folder"});
    }
    return real.string();
}

/// Only flags can change on a mount that exists; of those, what the options say.
void remount(const HelperCall& call) {
    unsigned long flags = MS_REMOUNT | (call.is_read_only ? MS_RDONLY : 0);
    const std::array<std::pair<std::string_view, unsigned long>, 6> kFlags = {{{"nosuid", MS_NOSUID},
                                                                               {"nodev", MS_NODEV},
                                                                               {"noexec", MS_NOEXEC},
                                                                               {"noatime", MS_NOATIME},
                                                                               {"nodiratime", MS_NODIRATIME},
                                                                               {"relatime", MS_RELATIME}}};
    for (const auto& [name, flag] : kFlags) {
        if (std::find(call.options.begin(), call.options.end(), name) != call.options.end()) flags |= flag;
    }
    if (::mount(nullptr, call.directory.c_str(), nullptr, flags, nullptr) == 0) return;
    throw api::FailureError({"unavailable", "remount of " + call.directory + ": " + std::strerror(errno)});
}

/// image=NAME becomes the folder of a mount that the daemon makes for it: as long as the server of it runs, the image
/// stays in the store. The daemon takes the folder away later.
class PinnedImages {
public:
    PinnedImages(const HelperCall& call, const std::string& directory)
        : places_(api::default_places(call.store, call.socket)) {
        for (const std::string& option : call.options) {
            const bool is_name = option.starts_with("image=") && !option.starts_with("image=/");
            options_.push_back(is_name ? "image=" + pin(option.substr(6), directory) : option);
        }
    }
    ~PinnedImages() {
        for (const std::string& name : names_) {
            try {
                Connection(places_, true)
                    .remove(with_query(api::path::kMounts, {{"mount", name}, {"discard", "true"}}));
            } catch (const std::exception&) {  // The daemon finds it when it starts the next time.
            }
        }
    }
    PinnedImages(const PinnedImages&) = delete;
    PinnedImages& operator=(const PinnedImages&) = delete;
    const std::vector<std::string>& options() const noexcept { return options_; }
    void keep() { names_.clear(); }

private:
    std::string pin(const std::string& image, const std::string& directory) {
        const api::MountRequest request{
            .image = image, .mountpoint = directory, .name = {}, .read_only = true, .start = false, .options = {}};
        const auto mount =
            api::parse_reply<api::Mount>(Connection(places_, true).post(api::path::kMounts, api::to_text(request)));
        names_.push_back(mount.name);
        return mount.folder;
    }

    const api::Places places_;
    std::vector<std::string> options_;
    std::vector<std::string> names_;
};

/// The server says itself what is wrong.
void mount_folders(const HelperCall& call, const std::string& directory) {
    const std::string program = api::companion_program("lamina-fuse", "fuse");
    PinnedImages images(call, directory);
    std::vector<std::string> options = images.options();
    options.emplace_back(call.is_read_only ? "ro" : "rw");
    const bool is_named =
        std::any_of(options.begin(), options.end(), [](const auto& option) { return option.starts_with("fsname="); });
    if (!is_named && call.source != "none") options.push_back("fsname=" + call.source);
    std::vector<std::string> words{program, "-o", joined(options), directory};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_t child = 0;
    const int failed = ::posix_spawnp(&child, program.c_str(), nullptr, nullptr, arguments.data(), environ);
    if (failed != 0) throw api::FailureError({"unavailable", "cannot start " + program + ": " + std::strerror(failed)});
    int status = 0;
    ::waitpid(child, &status, 0);
    if (status != 0) throw api::FailureError({"told", ""});
    images.keep();
}

void mount_store_image(const HelperCall& call, const std::string& directory) {
    Connection connection(api::default_places(call.store, call.socket), true);
    std::vector<std::string> options{"dev"};  // What mount(8) means when nothing is said of it.
    options.insert(options.end(), call.options.begin(), call.options.end());
    mount_image(connection, {.image = call.source,
                             .mountpoint = directory,
                             .name = call.name.empty() ? name_of_folder(directory) : call.name,
                             .read_only = call.is_read_only,
                             .options = joined(options)});
}

void carry_out(const HelperCall& call) {
    if (call.is_help || call.is_version) {
        fmt::print("{}", call.is_help ? std::string(kHelp) : fmt::format("mount.lamina {}\n", api::kVersion));
        return;
    }
    if (call.is_remount) return call.is_fake ? void() : remount(call);
    const std::string directory = real_folder(call.directory);
    if (call.is_fake) return;
    if (call.has_folders) return mount_folders(call, directory);
    mount_store_image(call, directory);
}

}  // namespace

HelperCall parse_helper_call(const std::vector<std::string>& words) {
    HelperCall call;
    std::vector<std::string> places;
    for (std::size_t at = 0; at < words.size(); ++at) {
        const std::string& word = words[at];
        if (word == "--help" || word == "-h") {
            call.is_help = true;
        } else if (word == "--version" || word == "-V") {
            call.is_version = true;
        } else if (word == "-o" || word == "-N" || word == "-t") {
            if (at + 1 == words.size()) usage(word + ": a value is missing");
            ++at;
            if (word == "-o") {
                for (const std::string& option : split_options(words[at])) take_option(call, option);
            }
        } else if (word.size() > 1 && word[0] == '-' && word.find_first_not_of("fnsvrw", 1) == std::string::npos) {
            call.is_fake = call.is_fake || word.find('f') != std::string::npos;
            call.is_read_only = call.is_read_only || word.find('r') != std::string::npos;
        } else if (word.starts_with("-")) {
            usage(word + ": unknown option");
        } else {
            places.push_back(word);
        }
    }
    if (call.is_help || call.is_version) return call;
    if (places.size() != 2) usage("an image and a mount point are wanted");
    call.source = places[0];
    call.directory = places[1];
    return call;
}

std::string name_of_folder(const std::string& directory) {
    std::string name;
    for (const char letter : directory) {
        const auto byte = static_cast<unsigned char>(letter);
        if (std::isalnum(byte) != 0 || letter == '.' || letter == '_') {
            name += letter;
        } else if (letter == '/') {
            if (!name.empty()) name += '-';
        } else {
            name += fmt::format("_{:02x}", byte);
        }
    }
    if (name.empty() || std::isalnum(static_cast<unsigned char>(name[0])) == 0) name = "at-" + name;
    if (name.size() <= kMaxNameBytes) return name;
    std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
    for (const char letter : directory) hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001b3;
    return fmt::format("{:016x}-{}", hash, name.substr(name.size() - 100));
}

bool is_helper_call(const std::vector<std::string>& words) {
    return words.size() >= 4 && words[2] == "-o" && !words[0].starts_with("-") && words[1].starts_with("/");
}

int run_mount_helper(const std::vector<std::string>& words) {
    try {
        carry_out(parse_helper_call(words));
        return 0;
    } catch (const api::FailureError& error) {
        const bool is_usage = error.failure().code == "usage";
        if (error.failure().code != "told") fmt::print(stderr, "mount.lamina: {}\n", error.failure().message);
        return is_usage ? kExitUsage : kExitFailed;
    } catch (const std::exception& error) {
        fmt::print(stderr, "mount.lamina: {}\n", error.what());
        return kExitFailed;
    }
}

}  // namespace lamina::client
