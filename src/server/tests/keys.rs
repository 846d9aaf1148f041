//! Tokens and passwords as users meet them.

use super::*;
use crate::server::SessionRules;
use std::time::Duration;

const HOUR: u64 = 3600;
const PASSWORD: &str = "SomeSecure9Word!";

async fn as_bob(world: &World, method: &str, path: &str, body: Option<&str>) -> Answer {
    call(world.address(), method, path, &auth(&world.bob), body).await
}

async fn login(world: &World, email: &str, password: &str) -> Answer {
    let body = serde_json::json!({ "email": email, "password": password }).to_string();
    call(world.address(), "POST", "/api/v2/users/login", &[], Some(&body)).await
}

#[tokio::test]
async fn a_token_is_made_listed_found_expired_and_deleted() {
    let world = World::new().await;
    let tokens = "/api/v2/users/me/keys/tokens";
    let hour =
        format!(r#"{{"lifetime":{},"token_name":"ci","scopes":["workspace:read","workspace:ssh"]}}"#, HOUR * 1_000_000_000);
    let made = world.post(tokens, &hour).await;
    assert_eq!(made.status, 201);
    let token = made.json()["key"].as_str().unwrap().to_owned();
    let id = token.split('-').next().unwrap().to_owned();
    assert_eq!(world.post(tokens, &hour).await.status, 409);

    let found = world.get(&format!("{tokens}/ci")).await.json();
    assert_eq!((&found["id"], &found["lifetime_seconds"]), (&Value::from(id.as_str()), &Value::from(HOUR)));
    assert_eq!(found["scopes"], serde_json::json!(["workspace:read", "workspace:ssh"]));
    assert_eq!((&found["login_type"], &found["allow_list"]), (&Value::from("token"), &serde_json::json!(["*:*"])));
    assert_eq!(world.get(&format!("/api/v2/users/me/keys/{id}")).await.json(), found);
    assert_eq!(world.get(&format!("{tokens}/nosuch")).await.status, 404);

    let count = async |query: &str| world.get(&format!("{tokens}{query}")).await.json().as_array().unwrap().len();
    assert_eq!(count("").await, 1);
    let expire = format!("/api/v2/users/me/keys/{id}/expire");
    assert_eq!(call(world.address(), "PUT", &expire, &auth(&world.admin), None).await.status, 204);
    assert_eq!(call(world.address(), "GET", "/api/v2/workspaces", &auth(&token), None).await.status, 401);
    assert_eq!((count("").await, count("?include_expired=true").await), (0, 1));
    let path = format!("/api/v2/users/me/keys/{id}");
    assert_eq!(call(world.address(), "DELETE", &path, &auth(&world.admin), None).await.status, 204);
    assert_eq!(call(world.address(), "DELETE", &path, &auth(&world.admin), None).await.status, 404);
    assert_eq!(call(world.address(), "PUT", &expire, &auth(&world.admin), None).await.status, 404);
    assert_eq!(count("?include_expired=true").await, 0);
}

#[tokio::test]
async fn unknown_scopes_too_many_rights_and_single_resources_are_refused() {
    let world = World::new().await;
    let tokens = "/api/v2/users/me/keys/tokens";
    for body in [r#"{"scopes":["workspace:fly"]}"#, r#"{"scope":"everything"}"#, r#"{"allow_list":["workspace:x"]}"#] {
        let answer = world.post(tokens, body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.json()["validations"][0]["field"].is_string(), "{body}: {answer:?}");
    }
    let made = world.post(tokens, r#"{"scopes":["api_key:create","workspace:read"]}"#).await.json();
    let small = auth(made["key"].as_str().unwrap());
    let ask = async |body: &str| call(world.address(), "POST", tokens, &small, Some(body)).await.status;
    assert_eq!(ask(r#"{"scopes":["workspace:read"]}"#).await, 201);
    assert_eq!(ask(r#"{"scopes":["workspace:ssh"]}"#).await, 403);
    assert_eq!(ask("{}").await, 403, "nothing named means everything");
}

#[tokio::test]
async fn lifetimes_are_those_of_the_deployment() {
    let day = Duration::from_secs(24 * HOUR);
    let rules = SessionRules { default_token: day * 3, max_token: day * 2, max_admin_token: day, ..SessionRules::default() };
    let world = World::with(|config| config.sessions = rules).await;
    let tokens = "/api/v2/users/me/keys/tokens";
    let body = |life: Duration| format!(r#"{{"token_name":"t","lifetime":{}}}"#, life.as_nanos());
    let refused = world.post(tokens, &body(day + Duration::from_secs(1))).await;
    assert_eq!((refused.status, &refused.json()["detail"]), (400, &Value::from("lifetime must be less than 24h0m0s")));
    assert_eq!(as_bob(&world, "POST", tokens, Some(&body(day * 2))).await.status, 201);
    assert_eq!(as_bob(&world, "POST", tokens, Some(&body(day * 3))).await.status, 400);
    assert_eq!(as_bob(&world, "POST", tokens, Some(r#"{"token_name":"u"}"#)).await.status, 201, "the default is cut");
    let config = as_bob(&world, "GET", &format!("{tokens}/tokenconfig"), None).await.json();
    assert_eq!(config["max_token_lifetime"], i64::try_from((day * 2).as_nanos()).unwrap());
    assert_eq!(as_bob(&world, "POST", tokens, Some(r#"{"lifetime":-1}"#)).await.status, 400);
}

#[tokio::test]
async fn what_is_wrong_with_a_tokens_name_is_named() {
    let world = World::new().await;
    let said = async |name: &str| {
        let refused = world.post("/api/v2/users/me/keys/tokens", &serde_json::json!({ "token_name": name }).to_string()).await;
        assert_eq!((refused.status, &refused.json()["validations"][0]["field"]), (400, &Value::from("token_name")));
        refused.json()["validations"][0]["detail"].as_str().unwrap().to_owned()
    };
    assert_eq!(said("a\u{1b}b").await, "A name has no control characters.");
    assert_eq!(said(&"x".repeat(65)).await, "Validation failed for tag \"max\" with value: \"65 bytes\"");
}

#[tokio::test]
async fn the_first_user_cares_for_everybodys_tokens_and_others_for_their_own() {
    let world = World::new().await;
    let of_bob = "/api/v2/users/bob/keys/tokens";
    assert_eq!(world.post(of_bob, r#"{"token_name":"ci"}"#).await.status, 201);
    assert_eq!(world.get(&format!("{of_bob}/ci")).await.status, 200);
    assert_eq!(as_bob(&world, "GET", "/api/v2/users/me/keys/tokens", None).await.json().as_array().unwrap().len(), 1);
    let all = world.get("/api/v2/users/me/keys/tokens?include_all=true").await.json();
    assert_eq!((all.as_array().unwrap().len(), &all[0]["username"]), (1, &Value::from("bob")));
    world.post("/api/v2/users/me/keys/tokens", r#"{"token_name":"mine"}"#).await;
    let seen = as_bob(&world, "GET", "/api/v2/users/me/keys/tokens?include_all=true", None).await.json();
    assert_eq!(seen.as_array().unwrap().len(), 1, "others see their own whatever they ask for");
    let users = world.get("/api/v2/users").await.json();
    assert_eq!((&users["count"], &users["users"][1]["username"]), (&Value::from(2), &Value::from("bob")));
}

#[tokio::test]
async fn a_user_with_a_password_logs_in_and_out_and_changes_it() {
    let world = World::new().await;
    let ann = format!(r#"{{"username":"ann","email":"ann@example.com","password":"{PASSWORD}"}}"#);
    assert_eq!(world.post("/api/v2/users", &ann).await.status, 201);
    let made = login(&world, "ANN@example.com", PASSWORD).await;
    assert_eq!(made.status, 201);
    let cookie = made.header("set-cookie").unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax") && !cookie.contains("Secure"), "{cookie}");
    let token = made.json()["session_token"].as_str().unwrap().to_owned();
    let ask = async |token: &str, method: &str, path: &str, body: Option<&str>| {
        call(world.address(), method, path, &auth(token), body).await
    };
    let me = ask(&token, "GET", "/api/v2/users/me", None).await.json();
    assert_eq!((&me["username"], &me["login_type"]), (&Value::from("ann"), &Value::from("password")));
    let id = token.split('-').next().unwrap();
    let key = ask(&token, "GET", &format!("/api/v2/users/me/keys/{id}"), None).await.json();
    assert_eq!((&key["login_type"], &key["lifetime_seconds"]), (&Value::from("password"), &Value::from(24 * HOUR)));

    let other = login(&world, "ann@example.com", PASSWORD).await.json()["session_token"].as_str().unwrap().to_owned();
    let heir = ask(&other, "POST", "/api/v2/users/me/keys", None).await.json()["key"].as_str().unwrap().to_owned();
    let change = |old: &str, new: &str| serde_json::json!({ "old_password": old, "password": new }).to_string();
    let path = "/api/v2/users/me/password";
    let new = "Another9Secure?Word";
    assert_eq!(ask(&token, "PUT", path, Some(&change("wrong", new))).await.status, 400);
    assert_eq!(ask(&token, "PUT", path, Some(&change(PASSWORD, "short"))).await.status, 400);
    assert_eq!(ask(&token, "PUT", path, Some(&change(PASSWORD, new))).await.status, 204);
    assert_eq!(ask(&token, "GET", "/api/v2/users/me", None).await.status, 200, "the login that changed it goes on");
    assert_eq!(ask(&other, "GET", "/api/v2/users/me", None).await.status, 401, "others end");
    assert_eq!(ask(&heir, "GET", "/api/v2/users/me", None).await.status, 401, "so do those that were made from them");
    assert_eq!(login(&world, "ann@example.com", PASSWORD).await.status, 401);
    assert_eq!(login(&world, "ann@example.com", new).await.status, 201);
    assert_eq!(ask(&token, "POST", "/api/v2/users/logout", None).await.json()["message"], "Logged out!");
    assert_eq!(ask(&token, "GET", "/api/v2/users/me", None).await.status, 401);
    // The first user has set no password yet, and may set everybody's.
    assert_eq!(ask(&world.admin, "PUT", path, Some(&change("", PASSWORD))).await.status, 204);
    assert_eq!(login(&world, "admin@localhost", PASSWORD).await.status, 201);
    assert_eq!(ask(&world.admin, "PUT", "/api/v2/users/ann/password", Some(&change("", PASSWORD))).await.status, 204);
    assert_eq!(login(&world, "ann@example.com", PASSWORD).await.status, 201);
    assert_eq!(as_bob(&world, "PUT", "/api/v2/users/ann/password", Some(&change("", new))).await.status, 400);
}

#[tokio::test]
async fn a_wrong_address_a_wrong_password_and_none_are_refused_alike() {
    let world = World::new().await;
    let answers = [
        login(&world, "nobody@example.com", PASSWORD).await,
        login(&world, "bob@localhost", PASSWORD).await,
        login(&world, "bob@localhost", "").await,
    ];
    for answer in answers {
        assert_eq!((answer.status, answer.text()), (401, r#"{"message":"Incorrect email or password."}"#));
    }
    let weak = world.post("/api/v2/users", r#"{"username":"ann","password":"short"}"#).await;
    assert_eq!((weak.status, &weak.json()["validations"][0]["field"]), (400, &Value::from("password")));
    assert_eq!(world.get("/api/v2/users/ann").await.status, 400, "nobody was made");
    let world = World::with(|config| config.sessions.passwords = false).await;
    assert_eq!(login(&world, "bob@localhost", PASSWORD).await.status, 403);
    let methods = call(world.address(), "GET", "/api/v2/users/authmethods", &[], None).await.json();
    assert_eq!(methods["password"]["enabled"], false);
}

#[tokio::test]
async fn a_login_lives_on_with_its_use_only_where_it_may() {
    for refresh in [true, false] {
        let world = World::with(|config| config.sessions.refresh = refresh).await;
        let store = world.running.app.store();
        let token = world.bob.parse().unwrap();
        let end = |key: &str| {
            let id = key.split('-').next().unwrap().to_owned();
            async move { store.key(store.user_by_name("bob").await.unwrap().id, &id).await.unwrap().expires_at }
        };
        let before = end(&world.bob).await;
        store.check_key(Stamp::now() + Duration::from_secs(HOUR), &token).await.unwrap();
        assert_eq!(end(&world.bob).await > before, refresh);
    }
}

#[tokio::test]
async fn where_it_is_wanted_whoever_comes_first_makes_the_first_user_once() {
    let folder = tempfile::tempdir().unwrap();
    let running = serve(Config { first_user_by_request: true, ..config(folder.path()) }).await.unwrap();
    assert!(!running.admin_token_path().exists());
    let first = "/api/v2/users/first";
    let ask = async |method: &str, path: &str, body: Option<&str>| call(running.address(), method, path, &[], body).await;
    let missing = ask("GET", first, None).await;
    assert_eq!((missing.status, missing.text()), (404, r#"{"message":"The initial user has not been created!"}"#));
    let user = |name: &str, password: &str| {
        serde_json::json!({ "email": format!("{name}@example.com"), "username": name, "password": password, "trial": false })
            .to_string()
    };
    for (bad, field) in [(user("ann", "short"), "password"), (user("me", PASSWORD), "username")] {
        let refused = ask("POST", first, Some(&bad)).await;
        assert_eq!((refused.status, &refused.json()["validations"][0]["field"]), (400, &Value::from(field)));
    }
    let made = ask("POST", first, Some(&user("ann", PASSWORD))).await;
    assert_eq!(made.status, 201);
    assert!(made.json()["user_id"].is_string() && made.json()["organization_id"].is_string());
    assert_eq!(ask("POST", first, Some(&user("eve", PASSWORD))).await.status, 409);
    assert_eq!(ask("GET", first, None).await.status, 200);
    let body = serde_json::json!({ "email": "ann@example.com", "password": PASSWORD }).to_string();
    let token = ask("POST", "/api/v2/users/login", Some(&body)).await.json()["session_token"].as_str().unwrap().to_owned();
    let me = call(running.address(), "GET", "/api/v2/users/me", &auth(&token), None).await.json();
    assert_eq!((&me["username"], &me["roles"][0]["name"]), (&Value::from("ann"), &Value::from("owner")));
    running.shutdown().await;
    // A server that makes the first user itself leaves an existing one as it is.
    let running = serve(config(folder.path())).await.unwrap();
    let token = std::fs::read_to_string(running.admin_token_path()).unwrap();
    let me = call(running.address(), "GET", "/api/v2/users/me", &auth(token.trim()), None).await.json();
    assert_eq!(me["username"], "ann");
}
