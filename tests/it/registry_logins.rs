//! Who asks a registry, and those who give tokens for it: they fail, they are asked by several users, they take passwords
//! or what `docker login` has left instead of one.

use std::net::TcpListener;

use rstest::rstest;

use crate::registry_faults::place;
use crate::registry_proxy::{Fault, Request};
use crate::registry_server::Setup;
use crate::registry_tokens::Tokens;

#[rstest]
#[case::broken(&[Fault::Status(500, "")])]
#[case::restarting(&[Fault::Status(503, "Retry-After: 1"), Fault::Status(502, "")])]
#[case::busy(&[Fault::Status(429, "Retry-After: 0")])]
#[case::silent(&[Fault::Silence])]
fn a_token_service_that_fails_for_now_is_waited_for(#[case] faults: &[Fault]) {
    let place = place!(Setup::default(), Some(Tokens::for_all()));
    place.proxy.fail(Request::Token, faults);
    place.push_whole("v1");
    let traffic = place.proxy.traffic();
    // One token to look, one to push.
    assert_eq!(traffic.of(Request::Token).requests, 2 + faults.len() as u64, "{:#?}", traffic.log);
}

#[test]
fn a_registry_that_fails_for_now_before_it_says_whom_it_trusts_is_waited_for() {
    let place = place!(Setup::default(), Some(Tokens::for_all()));
    place.proxy.fail(Request::Ping, &[Fault::Status(503, ""), Fault::Status(429, "Retry-After: 0")]);
    place.push_whole("v1");
}

#[test]
fn a_token_service_that_goes_on_failing_is_named() {
    let place = place!(Setup::default(), Some(Tokens::for_all()));
    place.proxy.fail_always(Request::Token, Fault::Status(503, "Retry-After: 0"));
    insta::assert_snapshot!(place.failure("v1"), @r"
    ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1': no token came from its token service '[REGISTRY]'
      caused by: the server answered with status 503
    ");
    assert_eq!(place.proxy.traffic().of(Request::Token).requests, 5, "as often as a registry is asked, and no more");
    place.proxy.fail_always(Request::Token, Fault::Status(429, "Retry-After: 3600"));
    insta::assert_snapshot!(place.failure("v1"), @r"
    ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1': no token came from its token service '[REGISTRY]'
      caused by: the server answered with status 429 and wants to be left alone for 3600 s
    ");
    assert_eq!(place.proxy.traffic().of(Request::Token).requests, 1, "it wants to be left alone");
    place.proxy.fail_always(Request::Token, Fault::Status(404, ""));
    insta::assert_snapshot!(place.failure("v1"), @r"
    ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1': no token came from its token service '[REGISTRY]'
      caused by: the server answered with status 404
    ");
    place.proxy.mend();
    place.push_whole("v1");
}

#[test]
fn a_token_service_that_cannot_be_reached_is_named() {
    // Nobody listens there any more.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = place!(Setup::default(), Some(Tokens::for_all().at(port)));
    let said = place.failure("v1").replace(&port.to_string(), "[PORT]");
    insta::assert_snapshot!(said, @r"
    ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1': no token came from its token service '127.0.0.1:[PORT]'
      caused by: Connection refused (os error 111)
    ");
}
