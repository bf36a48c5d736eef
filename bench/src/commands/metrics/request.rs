//! The request of a scraper, read from the head of its HTTP request. This module uses no socket: bytes are an
//! argument.

use std::fmt;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

/// Header fields of a request. Scrapers send ten of them, browsers twenty.
const FIELDS_MAX: usize = 64;

/// A request whose head has ended, or that cannot be one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HttpRequest {
    pub(super) asks_for: Result<Format, Refusal>,
    /// The method is HEAD: the answer has no body.
    pub(super) head_only: bool,
}

/// Why a request is refused: an HTTP status and a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed,
    OtherPath,
    OtherMethod,
    TooLong,
}

impl Refusal {
    pub(super) fn status(self) -> &'static str {
        match self {
            Self::Malformed => "400 Bad Request",
            Self::OtherPath => "404 Not Found",
            Self::OtherMethod => "405 Method Not Allowed\r\nAllow: GET, HEAD",
            Self::TooLong => "431 Request Header Fields Too Large",
        }
    }

    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Malformed => "this is not an HTTP request\n",
            Self::OtherPath => "the metrics are at /metrics\n",
            Self::OtherMethod => "only GET and HEAD are answered\n",
            Self::TooLong => "the head of the request is too long\n",
        }
    }
}

impl HttpRequest {
    /// Reads a request from its first bytes. `None`: its head has not ended yet.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(bytes) {
            Ok(httparse::Status::Partial) => return None,
            Ok(httparse::Status::Complete(_)) => {}
            Err(httparse::Error::TooManyHeaders) => return Some(Self::refused(Refusal::TooLong)),
            Err(_) => return Some(Self::refused(Refusal::Malformed)),
        }
        let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
        let asks_for = match (method, path(target)) {
            ("GET" | "HEAD", "/metrics") => Ok(Format::accepted_by(request.headers)),
            ("GET" | "HEAD", _) => Err(Refusal::OtherPath),
            _ => Err(Refusal::OtherMethod),
        };
        Some(Self { asks_for, head_only: method == "HEAD" })
    }

    pub(super) fn refused(refusal: Refusal) -> Self {
        Self { asks_for: Err(refusal), head_only: false }
    }
}

/// The path of a request's target, in origin form (`/metrics?x=1`) or absolute form (`http://host:9100/metrics`): a server
/// takes both (RFC 9112, section 3.2).
fn path(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((scheme, rest)) if ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) => {
            rest.find(['/', '?']).map_or("", |begin| &rest[begin..])
        }
        _ => target,
    };
    path.split_once('?').map_or(path, |(path, _)| path)
}

/// The format of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus' own text format, which every scraper and `promtool` read.
    Plain,
    /// For scrapers that accept it by name.
    OpenMetrics,
}

impl Format {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Plain => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    pub(super) fn page(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut page = String::new();
        match self {
            Self::Plain => prometheus_text::encode(&mut page, registry),
            Self::OpenMetrics => text::encode(&mut page, registry),
        }?;
        Ok(page)
    }

    /// Returns OpenMetrics if the `Accept` fields name it with no less weight than plain text, else plain
    /// text in any case. `Content-Type` names the format (RFC 9110, section 12.5.1).
    fn accepted_by(fields: &[httparse::Header<'_>]) -> Self {
        let accepts = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("accept"));
        let accepts = accepts.filter_map(|field| str::from_utf8(field.value).ok());
        let ranges: Vec<_> = accepts.flat_map(|value| value.split(',')).filter_map(Range::read).collect();
        let weight_of = |wanted: &dyn Fn(&Range<'_>) -> bool| {
            ranges.iter().filter(|range| wanted(range)).map(|range| range.weight).reduce(f32::max)
        };
        let version_is = |range: &Range<'_>, known| range.version.is_none_or(|version| version == known);
        let named = |kind: &'static str, version| {
            weight_of(&move |range| range.kind.eq_ignore_ascii_case(kind) && version_is(range, version))
        };
        let any = |kind: &'static str| weight_of(&move |range| range.kind.eq_ignore_ascii_case(kind));
        let open = named("application/openmetrics-text", "1.0.0").unwrap_or_default();
        let plain = named("text/plain", "0.0.4").or_else(|| any("text/*")).or_else(|| any("*/*"));
        if open > 0.0 && open >= plain.unwrap_or_default() { Self::OpenMetrics } else { Self::Plain }
    }
}

/// One range of an `Accept` field: `application/openmetrics-text;version=1.0.0;q=0.5`.
#[derive(Debug)]
struct Range<'a> {
    kind: &'a str,
    version: Option<&'a str>,
    weight: f32,
}

impl<'a> Range<'a> {
    /// Returns `None` if the weight is not valid.
    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Self { kind: parts.next()?, version: None, weight: 1.0 };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            if key.eq_ignore_ascii_case("version") {
                range.version = Some(value.trim_matches('"'));
            } else if key.eq_ignore_ascii_case("q") {
                range.weight = value.parse().ok().filter(|weight| (0.0..=1.0).contains(weight))?;
            }
        }
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(head: &str) -> HttpRequest {
        HttpRequest::read(head.as_bytes()).unwrap()
    }

    #[test]
    fn a_page_is_found_in_every_form_of_its_target() {
        for target in [
            "/metrics",
            "/metrics?x=1",
            "/metrics?",
            "http://host:9100/metrics",
            "HTTP://[::1]:9100/metrics?x=http://y/z",
        ] {
            let request = asked(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
            assert_eq!(request, HttpRequest { asks_for: Ok(Format::Plain), head_only: false }, "{target}");
        }
        for target in
            ["/", "/metrics/", "/x?/metrics", "http://host", "http://host?/metrics", "ftp://x/metrics"]
        {
            let request = asked(&format!("HEAD {target} HTTP/1.1\r\n\r\n"));
            assert_eq!(
                request,
                HttpRequest { asks_for: Err(Refusal::OtherPath), head_only: true },
                "{target}"
            );
        }
    }

    #[test]
    fn what_is_no_request_is_refused_at_once() {
        assert_eq!(asked("nonsense\r\n"), HttpRequest::refused(Refusal::Malformed));
        assert_eq!(asked("PUT /metrics HTTP/1.1\r\n\r\n").asks_for, Err(Refusal::OtherMethod));
        let many = "a: b\r\n".repeat(FIELDS_MAX + 1);
        let request = asked(&format!("GET /metrics HTTP/1.1\r\n{many}\r\n"));
        assert_eq!(request, HttpRequest::refused(Refusal::TooLong));
    }

    #[test]
    fn a_head_ends_with_its_empty_line() {
        let head = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        for len in 0..head.len() {
            assert_eq!(HttpRequest::read(&head[..len]), None, "{len}");
        }
        assert!(HttpRequest::read(head).is_some());
    }

    #[test]
    fn the_format_is_what_the_scraper_likes_most() {
        use Format::{OpenMetrics, Plain};
        const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (PROMETHEUS_2, OpenMetrics),
            (PROMETHEUS_3, OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"; Q=0.1", OpenMetrics),
            ("application/openmetrics-text, text/plain", OpenMetrics),
            ("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.4", Plain),
            ("application/openmetrics-text;q=0.4, */*;q=0.5", Plain),
            ("application/openmetrics-text;q=0.4, text/*;q=0.3, */*;q=0.5", OpenMetrics),
            ("application/openmetrics-text;q=0", Plain),
            ("application/openmetrics-text;q=nan", Plain),
            ("application/openmetrics-text;q=7", Plain),
            ("application/openmetrics-text;version=0.0.1", Plain),
            ("text/plain", Plain),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Plain),
            ("*/*", Plain),
            ("application/json", Plain),
            ("", Plain),
            (";;=,,;q", Plain),
        ] {
            let request = asked(&format!("GET /metrics HTTP/1.1\r\naccept: {accept}\r\n\r\n"));
            assert_eq!(request.asks_for, Ok(format), "{accept}");
        }
        let twice = "GET /metrics HTTP/1.1\r\nAccept: text/plain;q=0.5\r\nAccept: application/openmetrics-text\r\n\r\n";
        assert_eq!(asked(twice).asks_for, Ok(OpenMetrics));
    }
}
