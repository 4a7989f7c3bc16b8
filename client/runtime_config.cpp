#include "client/runtime_config.h"

#include "client/api.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <string_view>

namespace lamina::client {

namespace json = boost::json;

namespace {

// What is there before the image says anything.
constexpr std::string_view kStart = R"({
"ociVersion": "1.0.0",
"process": {
    "terminal": true, "user": {"uid": 0, "gid": 0}, "args": ["sh"],
    "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"], "cwd": "/",
    "capabilities": {}, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}], "noNewPrivileges": true},
"root": {"path": "rootfs"},
"hostname": "lamina",
"mounts": [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
     "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
     "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
     "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}],
"annotations": {},
"linux": {
    "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
    "maskedPaths": ["/proc/kcore", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
                    "/sys/firmware", "/proc/scsi"],
    "readonlyPaths": ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]}})";

// For a runtime that root starts.
constexpr std::string_view kPrivilegedMounts = R"([
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
     "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}])";
constexpr std::string_view kNoDevices = R"({"devices": [{"allow": false, "access": "rwm"}]})";

// For one that a user starts, whose user namespace may mount no sysfs of its own.
constexpr std::string_view kRootlessMounts = R"([
    {"destination": "/sys", "type": "bind", "source": "/sys",
     "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]},
    {"destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/resolv.conf", "options": ["rbind", "ro"]}])";

[[noreturn]] void malformed(std::string_view what) {
    throw api::FailureError({"malformed", fmt::format("the image's config: {}", what)});
}

/// The members of a JSON object of the image; those that are absent or null are empty.
class ImageObject {
public:
    ImageObject(const json::object* members, std::string place) : members_(members), place_(std::move(place)) {}

    std::string text(std::string_view name) const {
        const json::value* const value = find(name);
        if (!value) return {};
        if (!value->is_string()) malformed(place_ + std::string(name) + " is no text");
        return checked(value->as_string());
    }
    std::vector<std::string> texts(std::string_view name) const {
        std::vector<std::string> texts;
        const json::value* const value = find(name);
        if (!value) return texts;
        if (!value->is_array()) malformed(place_ + std::string(name) + " is no list");
        for (const json::value& item : value->as_array()) {
            if (!item.is_string()) malformed(place_ + std::string(name) + " holds what is no text");
            texts.push_back(checked(item.as_string()));
        }
        return texts;
    }
    ImageObject object(std::string_view name) const {
        const json::value* const value = find(name);
        if (value && !value->is_object()) malformed(place_ + std::string(name) + " is no object");
        return {value ? &value->as_object() : nullptr, place_ + std::string(name) + "."};
    }
    std::vector<std::string> sorted_names() const {
        std::vector<std::string> names;
        if (members_) {
            for (const auto& member : *members_) names.push_back(checked(member.key()));
        }
        std::sort(names.begin(), names.end());
        return names;
    }

private:
    const json::value* find(std::string_view name) const {
        const json::value* const value = members_ ? members_->if_contains(name) : nullptr;
        return value && !value->is_null() ? value : nullptr;
    }
    std::string checked(std::string_view text) const {
        if (text.find('\0') != std::string_view::npos) malformed(place_ + " holds a NUL");
        return std::string(text);
    }

    const json::object* members_;
    std::string place_;
};

json::array as_json(const std::vector<std::string>& texts) {
    return json::array(texts.begin(), texts.end());
}

std::string from_root(const std::string& path) {
    std::string whole = std::filesystem::path("/" + path).lexically_normal().string();
    while (whole.size() > 1 && whole.ends_with('/')) whole.pop_back();
    return whole.starts_with("//") ? whole.substr(1) : whole;
}

/// One that has the name already is replaced where it stands.
void set_variable(std::vector<std::string>& environment, const std::string& variable) {
    const auto equals = variable.find('=');
    if (equals == std::string::npos || equals == 0) {
        malformed("the environment variable \"" + variable + "\" is not of the form NAME=VALUE");
    }
    const std::string beginning = variable.substr(0, equals + 1);
    const auto found = std::find_if(environment.begin(), environment.end(),
                                    [&](const std::string& other) { return other.starts_with(beginning); });
    if (found == environment.end()) {
        environment.push_back(variable);
    } else {
        *found = variable;
    }
}

void set_process(json::object& process, const ImageObject& config, const ContainerUser& user) {
    json::object& of_user = process["user"].as_object();
    of_user["uid"] = user.uid;
    of_user["gid"] = user.gid;
    if (!user.groups.empty()) of_user["additionalGids"] = json::array(user.groups.begin(), user.groups.end());
    std::vector<std::string> words = config.texts("Entrypoint");
    for (const std::string& word : config.texts("Cmd")) words.push_back(word);
    if (!words.empty()) process["args"] = as_json(words);
    std::vector<std::string> environment;
    for (const json::value& variable : process["env"].as_array()) environment.emplace_back(variable.as_string());
    for (const std::string& variable : config.texts("Env")) set_variable(environment, variable);
    if (!user.home.empty()) set_variable(environment, "HOME=" + user.home);
    process["env"] = as_json(environment);
    if (const std::string folder = config.text("WorkingDir"); !folder.empty()) process["cwd"] = from_root(folder);
    const json::array few{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"};
    for (const char* const set : {"bounding", "effective", "inheritable", "permitted", "ambient"}) {
        process["capabilities"].as_object()[set] = few;
    }
}

void set_annotations(json::object& annotations, const ImageObject& image, const ImageObject& config) {
    const ImageObject labels = config.object("Labels");
    for (const std::string& name : labels.sorted_names()) annotations[name] = labels.text(name);
    const std::string prefix = "org.opencontainers.image.";
    const std::string created = image.text("created");
    annotations[prefix + "architecture"] = image.text("architecture");
    annotations[prefix + "author"] = image.text("author");
    annotations[prefix + "created"] = created.empty() ? "0001-01-01T00:00:00Z" : created;
    annotations[prefix + "exposedPorts"] =
        fmt::format("{}", fmt::join(config.object("ExposedPorts").sorted_names(), ","));
    annotations[prefix + "os"] = image.text("os");
    annotations[prefix + "stopSignal"] = config.text("StopSignal");
}

void add_all(json::array& to, std::string_view text) {
    const json::value more = json::parse(text);
    for (const json::value& value : more.as_array()) to.push_back(value);
}

void add_volumes(json::array& mounts, const ImageObject& config) {
    for (const std::string& volume : config.object("Volumes").sorted_names()) {
        mounts.push_back(json::object{{"destination", from_root(volume)},
                                      {"type", "tmpfs"},
                                      {"source", "none"},
                                      {"options", {"rw", "nosuid", "nodev", "noexec", "relatime"}}});
    }
}

void make_privileged(json::object& config) {
    config["linux"].as_object()["resources"] = json::parse(kNoDevices);
    config["linux"].as_object()["namespaces"].as_array().push_back(json::object{{"type", "network"}});
    config["mounts"].as_array().at(2).as_object()["options"].as_array().push_back("gid=5");
}

void make_rootless(json::object& config, const RuntimeChoices& choices) {
    config["process"].as_object()["user"].as_object().erase("additionalGids");  // A user may not set groups.
    json::object& linux_part = config["linux"].as_object();
    const auto one_id = [](std::uint32_t host_id) {
        json::array mappings;
        mappings.push_back(json::object{{"containerID", 0}, {"hostID", host_id}, {"size", 1}});
        return mappings;
    };
    linux_part["uidMappings"] = one_id(choices.host_uid);
    linux_part["gidMappings"] = one_id(choices.host_gid);
    linux_part["namespaces"].as_array().push_back(json::object{{"type", "user"}});
    add_all(config["mounts"].as_array(), kRootlessMounts);
}

}  // namespace

json::object runtime_config(const json::value& image_config, const UserFiles& files, const RuntimeChoices& choices) {
    if (!image_config.is_object()) malformed("not a JSON object");
    const ImageObject image(&image_config.as_object(), "");
    const ImageObject config = image.object("config");
    json::object result = json::parse(kStart).as_object();
    set_process(result["process"].as_object(), config, find_user(config.text("User"), files));
    set_annotations(result["annotations"].as_object(), image, config);
    json::array& mounts = result["mounts"].as_array();
    if (!choices.is_rootless) {
        add_all(mounts, kPrivilegedMounts);
        make_privileged(result);
    }
    add_volumes(mounts, config);
    if (choices.is_rootless) make_rootless(result, choices);
    if (choices.is_read_only) result["root"].as_object()["readonly"] = true;
    return result;
}

}  // namespace lamina::client
