// A mount's folder is made before its server starts and says all there is to know: `base` (durable first: from then on
// gc keeps the image), `name`, and the lock that its server holds. Names are unique because create() claims name and
// mount point for its duration, and looks at the folders while it has them.

#include "daemon/mounts.h"

#include "daemon/child_process.h"
#include "daemon/control_client.h"
#include "daemon/log.h"
#include "store/error.h"
#include "store/explain.h"
#include "store/file.h"
#include "store/read_view.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <thread>

namespace lamina::daemon {

using store::Errc;
using store::Error;

namespace {

constexpr std::size_t kMaxNameBytes = 128;
constexpr auto kStatsLimit = std::chrono::milliseconds(1000);
constexpr auto kQuotaLimit = std::chrono::seconds(10);
constexpr auto kStopLimit = std::chrono::seconds(30);
constexpr auto kEndLimit = std::chrono::seconds(10);
constexpr unsigned kCommitTries = 5;
constexpr auto kLockLook = std::chrono::milliseconds(2);
constexpr std::size_t kMaxProgramOutput = 4096;
constexpr std::time_t kPruneAgeSeconds = 60;  // A mount that its client is about to start has no server yet.

void check_name(const std::string& name) {
    const auto is_allowed = [](unsigned char character) {
        return std::isalnum(character) != 0 || character == '.' || character == '_' || character == '-';
    };
    const bool is_good = !name.empty() && name.size() <= kMaxNameBytes &&
                         std::isalnum(static_cast<unsigned char>(name[0])) &&
                         std::all_of(name.begin(), name.end(), is_allowed);
    if (is_good) return;
    throw Error(Errc::malformed,
                "mount name \"" + name +
                    "\": letters, digits, '.', '_' and '-', at most 128, beginning with a letter or digit");
}

std::string read_name(const std::string& folder, const std::string& id) {
    try {
        const auto data = store::read_file(folder + "/name", kMaxNameBytes);
        return std::string(reinterpret_cast<const char*>(data.data()), data.size());
    } catch (const Error&) {  // It was given none: the id serves as one.
        return id;
    }
}

/// A mount that was ever writable has a log or a checkpoint, whatever its base says now.
bool keeps_changes(const std::string& folder) {
    const auto names = store::list_folder(folder);
    return std::any_of(names.begin(), names.end(), [](const std::string& name) {
        return name.starts_with("log") || name.starts_with("checkpoint");
    });
}

/// Claims words for one create(); two of them at once would both find the name free.
class Claim {
public:
    Claim(store::Guarded<std::set<std::string>>& claimed, std::vector<std::string> words)
        : claimed_(claimed), words_(std::move(words)) {
        claimed_.with_lock([&](std::set<std::string>& set) {
            for (const std::string& word : words_) {
                if (set.contains(word)) throw Error(Errc::busy, word + " is being mounted by another request");
            }
            set.insert(words_.begin(), words_.end());
        });
    }
    ~Claim() {
        claimed_.with_lock([&](std::set<std::string>& set) {
            for (const std::string& word : words_) set.erase(word);
        });
    }
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;

private:
    store::Guarded<std::set<std::string>>& claimed_;
    std::vector<std::string> words_;
};

void wait_until_ended(const std::string& folder, const std::string& name) {
    const auto end = std::chrono::steady_clock::now() + kStopLimit;
    while (is_running(folder)) {
        if (std::chrono::steady_clock::now() > end) {
            throw Error(Errc::timed_out, "mount " + name + ": its server still runs after 30 seconds");
        }
        std::this_thread::sleep_for(kLockLook);
    }
}

/// A server does not answer when it is going away already, as after an umount from outside, and when it just begins.
void stop_server(const api::Mount& mount) {
    const auto end = std::chrono::steady_clock::now() + kStopLimit;
    while (is_running(mount.folder)) {
        try {
            ask_server(mount.folder, "stop", std::chrono::duration_cast<std::chrono::milliseconds>(kStopLimit));
            return wait_until_ended(mount.folder, mount.name);
        } catch (const Error& error) {
            if (error.code() != Errc::unavailable || std::chrono::steady_clock::now() > end) throw;
        }
        std::this_thread::sleep_for(kLockLook);
    }
}

/// One that was unmounted from outside is about to end, and may be waited for; another is not. A server that does not
/// answer is ending, or begins to serve.
bool is_ending(const api::Mount& mount) {
    try {
        const auto stats = ask_server(mount.folder, "stats", kStatsLimit);
        const auto* const mounted = stats.if_contains("mounted");
        return mounted && mounted->is_bool() && !mounted->as_bool();
    } catch (const Error&) {
        return true;
    }
}

void wait_for_end(api::Mount& mount) {
    if (!mount.running || !is_ending(mount)) return;
    const auto end = std::chrono::steady_clock::now() + kEndLimit;
    while (mount.running && std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(kLockLook);
        mount.running = is_running(mount.folder);
    }
}

}  // namespace

Mounts::Mounts(store::Store& store, std::string mount_program, bool requires_verified)
    : store_(store), mount_program_(std::move(mount_program)), requires_verified_(requires_verified) {}

std::string Mounts::folder(const std::string& id) const {
    return store_.root() + "/mounts/" + id;
}

api::Mount Mounts::describe(const std::string& id) const {
    api::Mount mount;
    mount.id = id;
    mount.folder = folder(id);
    const store::MountBase base = store::read_mount_base(mount.folder);
    mount.name = read_name(mount.folder, id);
    mount.image = base.image;
    mount.mountpoint = base.mountpoint;
    mount.read_only = base.is_read_only;
    mount.running = is_running(mount.folder);
    return mount;
}

std::vector<api::Mount> Mounts::described() const {
    std::vector<api::Mount> mounts;
    for (const std::string& id : store::list_folder(store_.root() + "/mounts")) {
        try {
            mounts.push_back(describe(id));
        } catch (const Error& error) {  // One damaged folder must not hide the others.
            log::warning("mount " + id + ": " + error.what());
        }
    }
    return mounts;
}

std::vector<api::Mount> Mounts::list() const {
    std::vector<api::Mount> mounts = described();
    for (api::Mount& mount : mounts) {
        if (!mount.running) continue;
        try {
            mount.server = ask_server(mount.folder, "stats", kStatsLimit);
        } catch (const Error& error) {  // It may have ended since.
            log::warning("mount " + mount.name + ": " + error.what());
        }
    }
    return mounts;
}

std::optional<api::Mount> Mounts::find_if(const std::string& reference) const {
    std::optional<api::Mount> kept;
    for (const api::Mount& mount : described()) {
        if (mount.id == reference || mount.name == reference) return mount;
        // A folder may have been the mount point of several, one after the other: the one that runs is meant.
        if (mount.mountpoint == reference && (mount.running || !kept)) kept = mount;
    }
    return kept;
}

api::Mount Mounts::find(const std::string& reference) const {
    if (auto found = find_if(reference)) return *std::move(found);
    throw Error(Errc::not_found, "no mount \"" + reference + "\"; lamina mounts lists them");
}

std::string Mounts::take_new(const api::MountRequest& request) {
    if (request.image.empty()) {
        throw Error(Errc::not_found, "no mount \"" + request.name + "\", and no image is named to make it from");
    }
    return store_.create_mount(request.image, request.mountpoint, request.read_only, request.name);
}

api::Mount Mounts::create(const api::MountRequest& request) {
    if (!request.mountpoint.starts_with('/')) {
        throw Error(Errc::malformed, "mount point \"" + request.mountpoint + "\": not an absolute path");
    }
    if (!request.name.empty()) check_name(request.name);
    const Claim claim(starting_, request.name.empty() ? std::vector<std::string>{request.mountpoint}
                                                      : std::vector<std::string>{request.mountpoint, request.name});
    std::optional<api::Mount> existing;
    for (api::Mount& mount : described()) {
        const bool has_our_name = !request.name.empty() && mount.name == request.name;
        if (has_our_name || mount.mountpoint == request.mountpoint) wait_for_end(mount);
        if (mount.running && mount.mountpoint == request.mountpoint) {
            throw Error(Errc::busy, request.mountpoint + ": mount " + mount.name + " is mounted there");
        }
        if (has_our_name) existing = mount;
    }
    if (!existing) {
        const api::Mount mount = describe(take_new(request));
        try {
            store_.begin_mount(mount.id, requires_verified_);
            if (request.start) start(mount, request.options);
        } catch (...) {  // Whatever it was: nothing was changed in it, so that nothing is lost.
            store_.discard_mount(mount.id);
            throw;
        }
        return describe(mount.id);
    }
    return mount_again(*existing, request);
}

api::Mount Mounts::mount_again(const api::Mount& existing, const api::MountRequest& request) {
    if (existing.running) throw Error(Errc::busy, "mount " + existing.name + " is mounted at " + existing.mountpoint);
    store_.begin_mount(existing.id, requires_verified_);
    store::MountBase base = store::read_mount_base(existing.folder);
    if (!request.image.empty() && base.image != request.image &&
        store_.inspect(request.image).summary.tree != base.tree) {
        throw Error(Errc::already_exists,
                    "mount " + existing.name + " keeps changes of " + base.image + ", not of " + request.image);
    }
    base.mountpoint = request.mountpoint;
    base.is_read_only = request.read_only;
    store::write_mount_base(existing.folder, base);
    store_.record_use(base.config_digest);
    const api::Mount mount = describe(existing.id);
    if (request.start) start(mount, request.options);
    return describe(mount.id);
}

void Mounts::start(const api::Mount& mount, const std::string& options) const {
    ChildProcess program(mount_program_, {"--state", mount.folder, "-o", options, mount.mountpoint}, std::stop_token{});
    program.run_to_end(kMaxProgramOutput);
}

void Mounts::unmount(const std::string& reference, bool is_discarded) {
    const api::Mount mount = find(reference);
    if (!mount.running && !is_discarded) {
        throw Error(Errc::not_found,
                    "mount " + mount.name + " is not mounted; umount --discard throws its changes away");
    }
    note_reads_of(mount);
    if (mount.running) stop_server(mount);
    if (is_discarded || (mount.read_only && !keeps_changes(mount.folder))) store_.discard_mount(mount.id);
}

std::vector<api::MountUpgrade> Mounts::upgrade(const std::string& reference, std::stop_token stop) const {
    std::vector<api::MountUpgrade> done;
    if (!reference.empty()) {
        const api::Mount mount = find(reference);
        if (!mount.running) throw Error(Errc::not_found, "mount " + mount.name + " is not mounted");
        done.push_back(upgrade_one(mount, stop));
        return done;
    }
    for (const api::Mount& mount : described())
        if (mount.running) done.push_back(upgrade_one(mount, stop));
    return done;
}

api::MountUpgrade Mounts::upgrade_one(const api::Mount& mount, std::stop_token stop) const {
    try {
        ChildProcess(mount_program_, {"--state", mount.folder, "--upgrade"}, stop).run_to_end(kMaxProgramOutput);
        return {.name = mount.name, .upgraded = true, .error = {}};
    } catch (const Error& error) {
        if (stop.stop_requested()) throw;
        return {.name = mount.name, .upgraded = false, .error = error.what()};
    }
}

void Mounts::changes(const std::string& reference, const std::function<void(std::string_view line)>& emit,
                     std::stop_token stop) const {
    const api::Mount mount = find(reference);
    ChildProcess program(mount_program_, {"--state", mount.folder, "--diff"}, stop);
    std::vector<std::byte> piece(65536);
    while (const std::size_t got = program.read(piece)) {
        emit(std::string_view(reinterpret_cast<const char*>(piece.data()), got));
    }
}

store::ImageSummary Mounts::commit(const api::CommitRequest& request, const store::ProgressFunction& progress,
                                   std::stop_token stop) {
    const store::ImageName name = store::ImageName::parse(request.name);
    const api::Mount mount = find(request.mount);
    const store::MountBase base = store::read_mount_base(mount.folder);
    const store::CommitRequest commit{.base_config_digest = base.config_digest,
                                      .base_layers = base.layers,
                                      .name = name,
                                      .created_by = "lamina commit " + mount.name,
                                      .progress = progress};
    for (unsigned tries = 1;; ++tries) {
        try {
            ChildProcess program(mount_program_, {"--state", mount.folder, "--export"}, stop);
            return store_.commit(commit, program, stop);
        } catch (const Error& error) {  // The mount's server was replaced over it.
            if (error.code() != Errc::busy || tries == kCommitTries) throw;
        }
    }
}

api::Quota Mounts::quota(const std::string& reference, const std::optional<api::QuotaRequest>& set) const {
    const api::Mount mount = find(reference);
    if (!mount.running) {
        throw Error(Errc::unavailable,
                    "mount " + mount.name + " is not mounted: give the quota when it is mounted again");
    }
    boost::json::object question{{"ask", "quota"}};
    if (set) question["limit"] = std::to_string(set->bytes) + ":" + std::to_string(set->inodes);
    const auto reply = ask_server(mount.folder, question, kQuotaLimit);
    const auto number = [&](std::string_view key) { return reply.at(key).to_number<std::uint64_t>(); };
    return {number("bytes"), number("inodes"), number("used_bytes"), number("used_inodes")};
}

std::optional<Mounts::Reads> Mounts::reads(const api::Mount& mount) const {
    if (!mount.running) return std::nullopt;
    try {
        const auto reply = ask_server(mount.folder, "reads", kStatsLimit);
        const boost::json::string& text = reply.at("chunks").as_string();
        const std::string_view digits(text.data(), text.size());
        Reads reads{.chunks = {}, .start_count = reply.at("start").to_number<std::size_t>()};
        constexpr std::size_t kDigits = store::ChunksCame::kDigits;
        for (std::size_t at = 0; at + kDigits <= digits.size(); at += kDigits) {
            reads.chunks.emplace_back(digits.substr(at, kDigits));
        }
        return reads;
    } catch (const std::exception& error) {  // It has ended since, or is of an older version.
        log::warning("mount " + mount.name + ": " + error.what());
        return std::nullopt;
    }
}

void Mounts::note_reads() const {
    for (const api::Mount& mount : described()) note_reads_of(mount);
}

void Mounts::note_reads_of(const api::Mount& mount) const {
    std::optional<Reads> known = reads(mount);
    if (!known) return;
    known->chunks.resize(std::min(known->chunks.size(), known->start_count));
    store_.note_reads(mount.id, known->chunks);
}

std::vector<std::string> Mounts::idle() const {
    std::vector<std::string> ids;
    const std::time_t now = std::time(nullptr);
    for (const api::Mount& mount : described()) {
        struct stat st {};
        const bool is_known = ::stat((mount.folder + "/base").c_str(), &st) == 0;
        const bool is_kept = mount.running || !mount.read_only || keeps_changes(mount.folder);
        if (is_kept || !is_known || now - st.st_mtime < kPruneAgeSeconds) continue;
        ids.push_back(mount.id);
    }
    return ids;
}

std::vector<std::string> Mounts::running_images() const {
    std::set<std::string> images;
    for (const api::Mount& mount : described()) {
        if (mount.running) images.insert(store::read_mount_base(mount.folder).config_digest);
    }
    return {images.begin(), images.end()};
}

void Mounts::prune() {
    for (const std::string& id : idle()) store_.discard_mount(id);
}

}  // namespace lamina::daemon
