// bundle, run: what hands an image to an OCI runtime.

#include "client/commands.h"
#include "client/container.h"
#include "client/output.h"
#include "client/runtime_config.h"

#include <sys/stat.h>

#include <fmt/format.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

namespace lamina::client {

namespace json = boost::json;
namespace fs = std::filesystem;

namespace {

struct BundleArguments {
    std::string image, directory, name;
    bool read_only = false;
    bool rootless = false;
};

struct RunArguments {
    std::string image, runtime, user, folder, entrypoint;
    std::string network = "none";
    std::vector<std::string> variables, volumes;
    bool read_only = false;
};

// What podman gives to programs in a container that root starts.
constexpr std::array kRunCapabilities = {"CAP_CHOWN",  "CAP_DAC_OVERRIDE", "CAP_FOWNER",           "CAP_FSETID",
                                         "CAP_KILL",   "CAP_MKNOD",        "CAP_NET_BIND_SERVICE", "CAP_SETFCAP",
                                         "CAP_SETGID", "CAP_SETPCAP",      "CAP_SETUID",           "CAP_SYS_CHROOT"};

json::value image_config(Connection& connection, const std::string& image) {
    const std::string target = with_query(api::path::kImage, {{"image", image}});
    return api::parse_reply<api::ImageDetails>(connection.get(target)).config;
}

void write_config(const std::string& bundle, const json::object& config) {
    const std::string path = bundle + "/config.json";
    std::ofstream file(path + ".new", std::ios::binary | std::ios::trunc);
    file << json::serialize(config) << "\n";
    file.close();
    std::error_code error;
    if (file) fs::rename(path + ".new", path, error);
    if (!file || error) throw api::FailureError({"unavailable", "cannot write " + path + ": " + std::strerror(errno)});
}

/// A bundle's folder, new or empty; taken away again unless it is kept.
class NewBundle {
public:
    explicit NewBundle(const std::string& folder) : folder_(folder) {
        is_made_ = ::mkdir(folder_.c_str(), 0700) == 0;
        std::error_code error;
        if (!is_made_ && errno != EEXIST) refuse(std::strerror(errno));
        if (!is_made_ && !fs::is_directory(folder_, error)) refuse("not a folder");
        if (!is_made_ && !fs::is_empty(folder_, error)) refuse(error ? error.message() : "the folder is not empty");
        if (::mkdir((folder_ + "/rootfs").c_str(), 0700) != 0) refuse(std::strerror(errno));
    }
    ~NewBundle() {
        if (is_kept_) return;
        ::unlink((folder_ + "/config.json.new").c_str());
        ::rmdir((folder_ + "/rootfs").c_str());
        if (is_made_) ::rmdir(folder_.c_str());
    }
    NewBundle(const NewBundle&) = delete;
    NewBundle& operator=(const NewBundle&) = delete;

    std::string root_folder() const { return fs::canonical(folder_).string() + "/rootfs"; }
    const std::string& folder() const noexcept { return folder_; }
    void keep() { is_kept_ = true; }

private:
    [[noreturn]] void refuse(const std::string& why) const {
        throw api::FailureError({"unavailable", "bundle " + folder_ + ": " + why});
    }
    const std::string folder_;
    bool is_made_ = false;
    bool is_kept_ = false;
};

void run_bundle(const Globals& globals, const BundleArguments& args) {
    Connection connection = globals.connect();
    const json::value image = image_config(connection, args.image);
    NewBundle bundle(args.directory);
    const api::Mount mount = mount_image(
        connection,
        {.image = args.image, .mountpoint = bundle.root_folder(), .name = args.name, .read_only = args.read_only});
    try {
        const RuntimeChoices choices{.is_read_only = args.read_only,
                                     .is_rootless = args.rootless || ::geteuid() != 0,
                                     .host_uid = ::geteuid(),
                                     .host_gid = ::getegid()};
        write_config(bundle.folder(), runtime_config(image, read_user_files(mount.mountpoint), choices));
    } catch (...) {  // Whatever it was; a mount that was there before keeps its changes.
        const std::string discard = args.name.empty() ? "true" : "";
        connection.remove(with_query(api::path::kMounts, {{"mount", mount.name}, {"discard", discard}}));
        throw;
    }
    bundle.keep();
    if (globals.json) return print_json({{"bundle", bundle.folder()}, {"mount", json::value_from(mount)}});
    print_text(mount.name + "\n");
}

/// The image's config with what the command line says instead.
json::value overridden(json::value image, const RunArguments& args, const std::vector<std::string>& command) {
    if (!image.is_object()) return image;
    json::value& config = image.as_object()["config"];
    if (!config.is_object()) config = json::object();
    json::object& members = config.as_object();
    if (!args.entrypoint.empty()) {
        members["Entrypoint"] = json::array{json::string(args.entrypoint)};
        members.erase("Cmd");
    }
    if (!command.empty()) members["Cmd"] = json::array(command.begin(), command.end());
    if (!args.user.empty()) members["User"] = args.user;
    if (!args.folder.empty()) members["WorkingDir"] = args.folder;
    json::value& variables = members["Env"];
    if (!variables.is_array()) variables = json::array();
    for (const std::string& variable : args.variables) variables.as_array().emplace_back(variable);
    return image;
}

json::object bind_mount(const std::string& source, const std::string& target, bool is_read_only) {
    return {{"destination", target},
            {"type", "bind"},
            {"source", source},
            {"options", {"rbind", is_read_only ? "ro" : "rw"}}};
}

/// SRC:DST[:ro]
json::object volume_mount(const std::string& volume) {
    const auto first = volume.find(':');
    const std::string rest = first == std::string::npos ? "" : volume.substr(first + 1);
    const bool is_read_only = rest.ends_with(":ro");
    const std::string target = rest.substr(0, rest.rfind(':') == std::string::npos ? rest.size() : rest.rfind(':'));
    const bool has_known_mode = target == rest || is_read_only || rest.ends_with(":rw");
    if (first == 0 || !target.starts_with('/') || !has_known_mode) {
        throw api::FailureError({"usage", "--volume " + volume + ": not of the form FOLDER:/PATH or FOLDER:/PATH:ro"});
    }
    std::error_code error;
    const fs::path source = fs::canonical(volume.substr(0, first), error);
    if (error) throw api::FailureError({"not_found", "--volume " + volume + ": " + error.message()});
    return bind_mount(source.string(), target, is_read_only);
}

/// The objects whose member is another than `value`.
json::array without(const json::array& objects, std::string_view member, std::string_view value) {
    json::array rest;
    for (const json::value& object : objects) {
        if (object.as_object().at(member).as_string() != value) rest.push_back(object);
    }
    return rest;
}

void set_network(json::object& config, const std::string& network) {
    constexpr const char* kResolver = "/etc/resolv.conf";
    json::value& namespaces = config["linux"].as_object()["namespaces"];
    json::value& mounts = config["mounts"];
    namespaces = without(namespaces.as_array(), "type", "network");
    mounts = without(mounts.as_array(), "destination", kResolver);
    if (network == "none") {
        namespaces.as_array().push_back(json::object{{"type", "network"}});
    } else {
        mounts.as_array().push_back(bind_mount(kResolver, kResolver, true));
    }
}

/// A bundle is for programs that are given away; what is run here by hand may do what podman lets it do.
void adapt(json::object& config, const RunArguments& args) {
    json::object& process = config["process"].as_object();
    process["terminal"] = ::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1;
    process["noNewPrivileges"] = false;
    process.erase("rlimits");
    json::object sets;
    for (const char* const set : {"bounding", "effective", "permitted"}) {
        sets[set] = json::array(kRunCapabilities.begin(), kRunCapabilities.end());
    }
    process["capabilities"] = std::move(sets);
    set_network(config, args.network);
    for (const std::string& volume : args.volumes) config["mounts"].as_array().push_back(volume_mount(volume));
}

int run_container(const Globals& globals, const RunArguments& args, const std::vector<std::string>& command) {
    const std::string runtime = find_runtime(args.runtime);
    const HeldSignals held;
    Connection connection = globals.connect();
    const json::value image = overridden(image_config(connection, args.image), args, command);
    Container container(globals.places(), runtime);
    HeldSignals::check();
    const api::Mount mount = mount_image(connection, {.image = args.image,
                                                      .mountpoint = container.root_folder(),
                                                      .name = container.id(),
                                                      .read_only = args.read_only});
    const RuntimeChoices choices{.is_read_only = args.read_only,
                                 .is_rootless = ::geteuid() != 0,
                                 .host_uid = ::geteuid(),
                                 .host_gid = ::getegid()};
    json::object config = runtime_config(image, read_user_files(mount.mountpoint), choices);
    adapt(config, args);
    write_config(container.bundle(), config);
    return container.run();
}

void add_bundle(const CommandContext& context) {
    const auto args = std::make_shared<BundleArguments>();
    CLI::App* const bundle =
        context.app.add_subcommand("bundle", "Write an OCI runtime bundle whose rootfs is a mount of the image");
    bundle->add_option("IMAGE", args->image, "Name or ID of the image")->required();
    bundle->add_option("DIR", args->directory, "Folder of the bundle: new, or empty")->required();
    bundle->add_flag("--ro", args->read_only, "Read-only");
    bundle->add_flag("--rootless", args->rootless, "For a runtime that an ordinary user starts; users need not say so");
    bundle->add_option("--name", args->name, "Name of the mount; one that exists is mounted again with its changes");
    bundle->callback(
        [context, args] { context.run = [&globals = context.globals, args] { run_bundle(globals, *args); }; });
}

void add_run(const CommandContext& context) {
    const auto args = std::make_shared<RunArguments>();
    CLI::App* const run = context.app.add_subcommand("run", "Run a program in a container of its own, and remove it");
    run->prefix_command();
    run->add_option("IMAGE", args->image, "Name or ID of the image; what follows is the program instead of its own")
        ->required();
    run->add_option("--runtime", args->runtime, "OCI runtime (also $LAMINA_RUNTIME; else runc, else crun)");
    run->add_option("-u,--user", args->user, "User and group, as USER[:GROUP], by name or number");
    run->add_option("-w,--workdir", args->folder, "Working folder");
    run->add_option("-e,--env", args->variables, "NAME=VALUE for its environment; may be given again")
        ->allow_extra_args(false);
    run->add_option("-v,--volume", args->volumes, "FOLDER:/PATH[:ro] of the host; may be given again")
        ->allow_extra_args(false);
    run->add_option("--entrypoint", args->entrypoint, "Program instead of the image's entrypoint");
    run->add_option("--network", args->network, "none (the default), or host")->check(CLI::IsMember({"none", "host"}));
    run->add_flag("--ro", args->read_only, "Read-only root");
    // What follows the image is the program's, so that these cannot stand there as with other commands.
    run->add_option("--store", context.globals.store_option, "Folder of the store");
    run->add_option("--socket", context.globals.socket_option, "The daemon's socket");
    run->add_flag("--json", context.globals.json, "Errors as JSON");
    run->callback([context, args, run] {
        const std::vector<std::string> command = run->remaining();
        context.run = [&globals = context.globals, args, command] {
            globals.exit_status = run_container(globals, *args, command);
        };
    });
}

}  // namespace

void add_run_commands(const CommandContext& context) {
    add_bundle(context);
    add_run(context);
}

}  // namespace lamina::client
