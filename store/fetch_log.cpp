// A line is one write(2) behind the end of the file, so that a process that is killed leaves whole lines; what a full
// disk or a power cut leaves of one is closed by the next. Nothing is synced, and nothing that fails here is told: who
// fetches must not fail for its sake.
#include "store/fetch_log.h"

#include "store/error.h"
#include "store/file_ops.h"
#include "store/json.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxLineBytes = 64 << 10;
constexpr std::size_t kMaxErrorBytes = 300;
constexpr std::array kKinds{FetchKind::waited, FetchKind::ahead, FetchKind::trace, FetchKind::rest};

std::int64_t steady_us() {
    return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

std::int64_t unix_us() {
    return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

boost::json::object written(const MountBegun& event) {
    return {{"event", "mount"}, {"mount", event.mount}, {"config", event.config.digest.hex()}, {"at", event.at_us}};
}

boost::json::object written(const RangeRequest& event) {
    return {{"event", "request"},
            {"layer", event.layer.digest.hex()},
            {"source", event.source},
            {"kind", fetch_kind_name(event.kind)},
            {"blob", {event.blob_first, event.blob_end}},
            {"tar", {event.tar_first, event.tar_end}},
            {"times", {event.sent_us, event.first_byte_us, event.end_us}},
            {"bytes", event.bytes},
            {"failures", event.failures},
            {"error", event.error.substr(0, kMaxErrorBytes)}};
}

boost::json::object written(const ChunkWait& event) {
    return {{"event", "wait"},
            {"mount", event.mount},
            {"layer", event.layer.digest.hex()},
            {"chunk", event.chunk.digest.hex()},
            {"times", {event.begin_us, event.end_us}},
            {"request", event.request_us},
            {"kind", fetch_kind_name(event.kind)},
            {"error", event.error.substr(0, kMaxErrorBytes)}};
}

boost::json::object written(const ChunksCame& event) {
    boost::json::array chunks;
    for (const std::string& digits : event.chunks) chunks.push_back(boost::json::string(digits));
    return {{"event", "came"},
            {"request", event.request_us},
            {"kind", fetch_kind_name(event.kind)},
            {"chunks", std::move(chunks)}};
}

boost::json::object written(const WholePull& event) {
    boost::json::array layers;
    for (const DiffId& layer : event.layers) layers.push_back(boost::json::string(layer.digest.hex()));
    return {{"event", "pull"},
            {"at", event.at_us},
            {"source", event.source},
            {"lacks_index", event.lacks_index ? "true" : "false"},
            {"layers", std::move(layers)}};
}

/// The members of one line; malformed where one is missing or of another kind.
class Line {
public:
    explicit Line(const json::Field& field) : field_(field) {}
    std::string text(std::string_view name) const { return field_.member(name).text(); }
    std::uint64_t bytes(std::string_view name) const { return field_.member(name).size_bytes(); }
    std::int64_t time(std::string_view name) const { return static_cast<std::int64_t>(bytes(name)); }
    Digest digest(std::string_view name) const { return Digest::parse_hex(text(name)); }
    template <std::size_t N>
    std::array<std::uint64_t, N> numbers(std::string_view name) const {
        const json::Field list = field_.member(name);
        if (list.item_count() != N) list.fail("of another length");
        std::array<std::uint64_t, N> numbers;
        for (std::size_t i = 0; i < N; ++i) numbers[i] = list.item(i).size_bytes();
        if (!std::ranges::is_sorted(numbers)) list.fail("not in order");
        return numbers;
    }
    std::vector<std::string> texts(std::string_view name) const {
        const json::Field list = field_.member(name);
        std::vector<std::string> texts;
        for (std::size_t i = 0; i < list.item_count(); ++i) texts.push_back(list.item(i).text());
        return texts;
    }
    std::vector<DiffId> layers(std::string_view name) const {
        std::vector<DiffId> layers;
        for (const std::string& layer : texts(name)) layers.push_back({Digest::parse_hex(layer)});
        return layers;
    }
    FetchKind kind() const {
        const std::string name = text("kind");
        const auto* const found = std::ranges::find(kKinds, name, fetch_kind_name);
        if (found == kKinds.end()) field_.fail("of an unknown kind");
        return *found;
    }

private:
    const json::Field& field_;
};

RangeRequest read_request(const Line& line) {
    const auto [blob_first, blob_end] = line.numbers<2>("blob");
    const auto [tar_first, tar_end] = line.numbers<2>("tar");
    const auto [sent, first_byte, end] = line.numbers<3>("times");
    return {.layer = {line.digest("layer")},
            .source = line.text("source"),
            .kind = line.kind(),
            .blob_first = blob_first,
            .blob_end = blob_end,
            .tar_first = tar_first,
            .tar_end = tar_end,
            .sent_us = static_cast<std::int64_t>(sent),
            .first_byte_us = static_cast<std::int64_t>(first_byte),
            .end_us = static_cast<std::int64_t>(end),
            .bytes = line.bytes("bytes"),
            .failures = line.bytes("failures"),
            .error = line.text("error")};
}

ChunkWait read_wait(const Line& line) {
    const auto [begin, end] = line.numbers<2>("times");
    return {.mount = line.text("mount"),
            .layer = {line.digest("layer")},
            .chunk = {line.digest("chunk")},
            .begin_us = static_cast<std::int64_t>(begin),
            .end_us = static_cast<std::int64_t>(end),
            .request_us = line.time("request"),
            .kind = line.kind(),
            .error = line.text("error")};
}

void read_line(std::string_view text, FetchLog::Events& events) {
    const auto value = json::parse(as_bytes(text), {.document_bytes = kMaxLineBytes, .depth = 4});
    const json::Field field(value, "fetch log");
    const Line line(field);
    const std::string event = line.text("event");
    if (event == "request") {
        events.requests.push_back(read_request(line));
    } else if (event == "wait") {
        events.waits.push_back(read_wait(line));
    } else if (event == "came") {
        events.came.push_back(
            {.request_us = line.time("request"), .kind = line.kind(), .chunks = line.texts("chunks")});
    } else if (event == "mount") {
        events.mounts.push_back(
            {.mount = line.text("mount"), .config = {line.digest("config")}, .at_us = line.time("at")});
    } else if (event == "pull") {
        events.pulls.push_back({.at_us = line.time("at"),
                                .source = line.text("source"),
                                .lacks_index = line.text("lacks_index") == "true",
                                .layers = line.layers("layers")});
    } else {
        field.fail("an unknown event");
    }
}

void read_lines(std::string_view text, FetchLog::Events& events) {
    while (!text.empty()) {
        const auto end = std::min(text.find('\n'), text.size());
        const std::string_view line = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        if (line.empty()) continue;
        try {
            read_line(line, events);
        } catch (const Error&) {  // As if it had never been written.
            ++events.unreadable_lines;
        }
    }
}

}  // namespace

std::string_view fetch_kind_name(FetchKind kind) {
    switch (kind) {
        case FetchKind::waited:
            return "waited";
        case FetchKind::ahead:
            return "ahead";
        case FetchKind::trace:
            return "trace";
        case FetchKind::rest:
            return "rest";
    }
    return "rest";
}

FetchLog::FetchLog(std::string folder, std::uint64_t max_file_bytes)
    : folder_(std::move(folder)), max_file_bytes_(max_file_bytes), clock_offset_us_(unix_us() - steady_us()) {}

std::int64_t FetchLog::now_us() const {
    return steady_us() + clock_offset_us_;
}

std::int64_t FetchLog::new_stamp() {
    const std::int64_t now = now_us();
    const std::lock_guard lock(mutex_);
    return last_stamp_us_ = std::max(last_stamp_us_ + 1, now);
}

void FetchLog::add(const MountBegun& event) noexcept {
    write(event);
}
void FetchLog::add(const RangeRequest& event) noexcept {
    write(event);
}
void FetchLog::add(const ChunkWait& event) noexcept {
    write(event);
}
void FetchLog::add(const ChunksCame& event) noexcept {
    write(event);
}
void FetchLog::add(const WholePull& event) noexcept {
    write(event);
}

template <class Event>
void FetchLog::write(const Event& event) noexcept {
    try {
        const std::string line = boost::json::serialize(written(event)) + "\n";
        const std::lock_guard lock(mutex_);
        append(line);
    } catch (const std::exception&) {  // A full disk, most likely: who asks why will know less.
    }
}

void FetchLog::open() {
    make_folder(folder_);
    const std::string path = folder_ + "/log";
    UniqueFd file(::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file) throw_errno(errno, "open " + path);
    struct stat st {};
    if (::fstat(file.get(), &st) != 0) throw_errno(errno, "stat " + path);
    file_bytes_ = static_cast<std::uint64_t>(st.st_size);
    std::array<std::byte, 1> last{std::byte{'\n'}};
    if (file_bytes_ > 0) static_cast<void>(read_some(file.get(), file_bytes_ - 1, last, path));
    ends_in_line_ = last[0] == std::byte{'\n'};
    file_ = std::move(file);
}

void FetchLog::append(const std::string& line) {
    if (!file_) open();
    if (file_bytes_ > 0 && file_bytes_ + line.size() > max_file_bytes_) {
        rename_durably(folder_ + "/log", folder_ + "/log.1");
        file_ = UniqueFd();
        open();
    }
    const std::string text = ends_in_line_ ? line : "\n" + line;
    fault_point("write", folder_ + "/log");
    const ssize_t count = ::write(file_.get(), text.data(), text.size());
    if (count <= 0) return;
    file_bytes_ += static_cast<std::uint64_t>(count);
    ends_in_line_ = static_cast<std::size_t>(count) == text.size();
}

FetchLog::Events FetchLog::read() const {
    Events events;
    const std::lock_guard lock(mutex_);
    for (const char* const name : {"/log.1", "/log"}) {
        const std::string path = folder_ + name;
        if (!exists(path)) continue;
        const auto bytes = read_file(path, max_file_bytes_ + kMaxLineBytes);
        read_lines({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, events);
    }
    // A request is written when it ends.
    std::ranges::stable_sort(events.requests, {}, &RangeRequest::sent_us);
    std::ranges::stable_sort(events.waits, {}, &ChunkWait::begin_us);
    return events;
}

}  // namespace lamina::store
