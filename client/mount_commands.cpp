// mount, umount, mounts, diff, commit: what deals with mounted images and their changes.

#include "client/commands.h"
#include "client/output.h"
#include "client/owned_fd.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>
#include <spawn.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <optional>

extern char** environ;

namespace lamina::client {

namespace json = boost::json;

namespace {

struct MountArguments {
    std::string image, directory, name, mount;
    std::optional<std::string> quota;
    bool read_only = false;
    bool discard = false;
    bool upgrade = false;
};

std::string real_path(const std::string& path) {
    std::error_code error;
    const std::filesystem::path real = std::filesystem::canonical(path, error);
    if (error) throw api::FailureError({"not_found", path + ": " + error.message()});
    return real.string();
}

/// A mount is named by its name, its id, or its folder; a folder that can be resolved is given by its real path.
std::string mount_reference(const std::string& text) {
    std::error_code error;
    if (text.find('/') == std::string::npos && !std::filesystem::is_directory(text, error)) return text;
    const std::filesystem::path real = std::filesystem::canonical(text, error);
    return error ? absolute_path(text) : real.string();
}

std::string own_mount_namespace() {
    std::error_code error;
    return std::filesystem::read_symlink("/proc/self/ns/mnt", error).string();
}

/// Runs the mount program here, where the mount shall appear. What it says on standard error is the failure's text.
void start_mount_program(const std::string& program, const std::string& options, const api::Mount& mount) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw api::FailureError({"unavailable", "cannot make a pipe"});
    const OwnedFd from_program(ends[0]);
    OwnedFd to_here(ends[1]);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to_here.get(), STDERR_FILENO);
    std::vector<std::string> words{program, "--state", mount.folder, "-o", options, mount.mountpoint};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_t child = 0;
    const int failed = ::posix_spawnp(&child, program.c_str(), &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    to_here = OwnedFd();
    if (failed != 0) throw api::FailureError({"unavailable", "cannot start " + program + ": " + std::strerror(failed)});
    std::string said;
    std::array<char, 1024> piece{};
    for (ssize_t got = 1; got > 0 && said.size() < 65536; said.append(piece.data(), std::max<ssize_t>(got, 0))) {
        got = ::read(from_program.get(), piece.data(), piece.size());
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    while (said.ends_with('\n')) said.pop_back();
    if (status == 0) {
        if (!said.empty()) fmt::print(stderr, "{}\n", said);
        return;
    }
    throw api::FailureError({"unavailable", said.empty() ? "the mount program failed" : said});
}

api::QuotaRequest parse_quota(const std::string& text) {
    const std::size_t comma = text.find(',');
    try {
        api::QuotaRequest limits{.mount = {}, .bytes = api::parse_size(std::string_view(text).substr(0, comma))};
        if (comma != std::string::npos) limits.inodes = api::parse_size(std::string_view(text).substr(comma + 1));
        return limits;
    } catch (const api::FailureError&) {  // Better said of the whole.
        throw api::FailureError(
            {"usage", "quota \"" + text + "\": BYTES or BYTES,INODES, with K, M, G or T; 0: no limit"});
    }
}

void run_mount(const Globals& globals, const MountArguments& args) {
    std::string options;
    if (args.quota) {
        const api::QuotaRequest limits = parse_quota(*args.quota);
        options = fmt::format("quota={}:{}", limits.bytes, limits.inodes);
    }
    Connection connection = globals.connect();
    const api::Mount mount = mount_image(connection, {.image = args.image,
                                                      .mountpoint = real_path(args.directory),
                                                      .name = args.name,
                                                      .read_only = args.read_only,
                                                      .options = options});
    if (globals.json) return print_json(json::value_from(mount));
    print_text(mount.name + "\n");
}

void run_umount(const Globals& globals, const MountArguments& args) {
    const std::string target = with_query(
        api::path::kMounts, {{"mount", mount_reference(args.mount)}, {"discard", args.discard ? "true" : ""}});
    const json::value reply = globals.connect().remove(target);
    if (globals.json) print_json(reply);
}

void run_mounts(const Globals& globals) {
    const json::value reply = globals.connect().get(std::string(api::path::kMounts));
    if (globals.json) return print_json(reply);
    Table table({{"NAME"}, {"IMAGE"}, {"STATE"}, {"MODE"}, {"DIRECTORY"}});
    for (const api::Mount& mount : api::parse_reply<api::Mounts>(reply).mounts) {
        table.add({printable(mount.name), printable(mount.image), mount.running ? "mounted" : "kept",
                   mount.read_only ? "ro" : "rw", printable(mount.mountpoint)});
    }
    table.print();
}

std::string limit_text(std::uint64_t limit, const std::string& text) {
    return limit == 0 ? "no limit" : text;
}

void run_quota(const Globals& globals, const MountArguments& args) {
    const std::string reference = mount_reference(args.mount);
    json::value reply;
    if (!args.quota) {
        reply = globals.connect().get(with_query(api::path::kMountQuota, {{"mount", reference}}));
    } else {
        api::QuotaRequest limits = parse_quota(*args.quota);
        limits.mount = reference;
        reply = globals.connect().post(api::path::kMountQuota, api::to_text(limits));
    }
    if (globals.json) return print_json(reply);
    const auto quota = api::parse_reply<api::Quota>(reply);
    Table table({{""}, {"USED", true}, {"LIMIT", true}});
    table.add({"bytes", human_bytes(quota.used_bytes), limit_text(quota.bytes, human_bytes(quota.bytes))});
    table.add({"inodes", std::to_string(quota.used_inodes), limit_text(quota.inodes, std::to_string(quota.inodes))});
    table.print();
}

void run_upgrade(const Globals& globals, const MountArguments& args) {
    const std::string reference = args.mount.empty() ? args.mount : mount_reference(args.mount);
    const json::value reply = globals.connect().post(with_query(api::path::kMountUpgrade, {{"mount", reference}}), "");
    const auto mounts = api::parse_reply<api::MountUpgrades>(reply).mounts;
    if (globals.json) print_json(reply);
    std::size_t failed_count = 0;
    for (const api::MountUpgrade& mount : mounts) {
        if (!mount.upgraded) ++failed_count;
        const std::string outcome = mount.upgraded ? "upgraded" : printable(mount.error);
        if (!globals.json) print_text(printable(mount.name) + ": " + outcome + "\n");
    }
    if (failed_count != 0)
        throw api::FailureError(
            {"unavailable", fmt::format("{} of {} mounts go on with their old servers", failed_count, mounts.size())});
}

/// Dirty pages of mappings reach the mount's server only when they are written back: so that what is cut off for a
/// diff or a commit holds all that programs have written.
void sync_mount(Connection& connection, const std::string& reference) {
    const auto mounts = api::parse_reply<api::Mounts>(connection.get(std::string(api::path::kMounts)));
    for (const api::Mount& mount : mounts.mounts) {
        const bool is_meant = mount.name == reference || mount.id == reference || mount.mountpoint == reference;
        if (!is_meant || !mount.running) continue;
        const int fd = ::open(mount.mountpoint.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0) continue;  // Mounted in another namespace: what it wrote by calls is there all the same.
        ::syncfs(fd);
        ::close(fd);
    }
}

void run_diff(const Globals& globals, const MountArguments& args) {
    Connection connection = globals.connect();
    const std::string reference = mount_reference(args.mount);
    sync_mount(connection, reference);
    const std::string target = with_query(api::path::kMountChanges, {{"mount", reference}});
    json::array all;
    connection.get_stream(target, [&](const json::object& event) {
        if (globals.json) {
            all.push_back(event);
            return;
        }
        const auto changed = api::parse_reply<api::Changed>(event);
        print_text(changed.kind + " " + printable(changed.path) + "\n");
    });
    if (globals.json) print_json(all);
}

void run_commit(const Globals& globals, const MountArguments& args) {
    Connection connection = globals.connect();
    const std::string reference = mount_reference(args.mount);
    sync_mount(connection, reference);
    const json::value result =
        post_with_progress(connection, api::path::kCommit, api::to_text(api::CommitRequest{reference, args.name}));
    if (globals.json) return print_json(result);
    const auto image = api::parse_reply<api::Image>(result);
    print_text(short_digest(image.id) + "  " + printable(args.name) + "\n");
}

template <class Run>
void on_command(CLI::App* command, const CommandContext& context, const std::shared_ptr<MountArguments>& args,
                Run run) {
    command->callback(
        [context, args, run] { context.run = [&globals = context.globals, args, run] { run(globals, *args); }; });
}

}  // namespace

api::Mount mount_image(Connection& connection, api::MountRequest request) {
    const auto is_known = [&] {
        const auto mounts = api::parse_reply<api::Mounts>(connection.get(std::string(api::path::kMounts))).mounts;
        return std::any_of(mounts.begin(), mounts.end(), [&](const auto& mount) { return mount.name == request.name; });
    };
    const auto ping = api::parse_reply<api::Ping>(connection.get(std::string(api::path::kPing)));
    request.start = ping.mount_namespace == own_mount_namespace();
    const bool has_changes = !request.start && !request.name.empty() && is_known();
    const auto mount = api::parse_reply<api::Mount>(connection.post(api::path::kMounts, api::to_text(request)));
    if (request.start) return mount;
    try {
        start_mount_program(ping.mount_program, request.options, mount);
    } catch (const api::FailureError&) {
        if (!has_changes) {
            connection.remove(with_query(api::path::kMounts, {{"mount", mount.name}, {"discard", "true"}}));
        }
        throw;
    }
    return mount;
}

void add_mount_commands(const CommandContext& context) {
    constexpr const char* kMountHelp = "Name, ID or folder of the mount";
    const auto args = std::make_shared<MountArguments>();

    CLI::App* const mount = context.app.add_subcommand("mount", "Mount an image, with a layer of changes on top");
    mount->add_option("IMAGE", args->image, "Name or ID of the image")->required();
    mount->add_option("DIR", args->directory, "Where to mount it: an existing folder")->required();
    mount->add_flag("--ro", args->read_only, "Read-only");
    mount->add_option("--name", args->name, "Name of the mount; one that exists is mounted again with its changes");
    mount->add_option("--quota", args->quota,
                      "BYTES[,INODES]: what the changes may take (K, M, G, T; 0: no limit); kept with the mount");
    on_command(mount, context, args, run_mount);

    CLI::App* const umount =
        context.app.add_subcommand("umount", "Unmount; the changes are kept under the mount's name");
    umount->add_option("MOUNT", args->mount, kMountHelp)->required();
    umount->add_flag("--discard", args->discard, "Throw the changes away; also of a mount that is not mounted");
    on_command(umount, context, args, run_umount);

    CLI::App* const mounts = context.app.add_subcommand("mounts", "List the mounts, and the changes that are kept");
    CLI::Option* const upgrade = mounts->add_flag(
        "--upgrade", args->upgrade, "Go on with servers of the installed program, in the place of those that serve");
    mounts->add_option("MOUNT", args->mount, "With --upgrade: only this one, by name, ID or folder")->needs(upgrade);
    on_command(mounts, context, args, [](const Globals& globals, const MountArguments& given) {
        if (given.upgrade) return run_upgrade(globals, given);
        run_mounts(globals);
    });

    CLI::App* const quota = context.app.add_subcommand("quota", "Show or set what a mount's changes may take");
    quota->add_option("MOUNT", args->mount, kMountHelp)->required();
    quota->add_option("LIMITS", args->quota, "BYTES[,INODES] with K, M, G or T; 0: no limit");
    on_command(quota, context, args, run_quota);

    CLI::App* const diff =
        context.app.add_subcommand("diff", "Show what a mount changed: A added, C changed, D deleted");
    diff->add_option("MOUNT", args->mount, kMountHelp)->required();
    on_command(diff, context, args, run_diff);

    CLI::App* const commit = context.app.add_subcommand("commit", "Make a new image from a mount's changes");
    commit->add_option("MOUNT", args->mount, kMountHelp)->required();
    commit->add_option("NAME", args->name, "Name of the new image")->required();
    on_command(commit, context, args, run_commit);
}

}  // namespace lamina::client
