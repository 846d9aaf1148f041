//! Answers in the API's form (`http-api.md` §1): JSON always with its content type, errors with a message for people.

use super::{password::HashError, store::StoreError};
use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, JSON)], bytes).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Sets a field of a JSON object.
pub(crate) fn put(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(object) = object.as_object_mut() {
        object.insert(field.to_owned(), value.into());
    }
}

/// 200 with a JSON body.
pub(crate) fn ok(body: &impl Serialize) -> Response {
    json(StatusCode::OK, body)
}

/// A plain text.
pub(crate) fn text(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, TEXT)], body.into()).into_response()
}

/// An error answer.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    detail: Option<String>,
    field: Option<(&'static str, String)>,
    /// For the `WWW-Authenticate` header: the URL of the deployment.
    realm: Option<String>,
}

impl ApiError {
    /// An error with a message.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), detail: None, field: None, realm: None }
    }

    /// 400 with a message.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400 for one field of the body.
    pub(crate) fn invalid(field: &'static str, rule: &str, value: &str) -> Self {
        Self::bad_request("Validation failed.")
            .with_field(field, format!("Validation failed for tag \"{rule}\" with value: \"{value}\""))
    }

    /// What one does not have, and what one may not see.
    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Resource not found or you do not have access to this resource")
    }

    /// An agent that one does not have, or may not see.
    pub(crate) fn no_agent() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Agent doesn't exist with that id, or you do not have access to it.")
    }

    /// Known, but not for this user.
    pub(crate) fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden.").with_detail(
            "You don't have permission to view this content. If you believe this is a mistake, please contact your \
             administrator or try signing in with different credentials.",
        )
    }

    /// No valid session; `access_url` goes into the challenge.
    pub(crate) fn signed_out(access_url: &str, detail: impl Into<String>) -> Self {
        let message = "You are signed out or your session has expired. Please sign in again to continue.";
        Self { realm: Some(access_url.to_owned()), ..Self::new(StatusCode::UNAUTHORIZED, message).with_detail(detail) }
    }

    /// Something of ours failed; the cause goes to the log only.
    pub(crate) fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "An internal server error occurred.")
    }

    /// Adds what went wrong in particular.
    #[must_use]
    pub(crate) fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    /// Adds the field that is wrong.
    #[must_use]
    pub(crate) fn with_field(self, field: &'static str, detail: impl Into<String>) -> Self {
        Self { field: Some((field, detail.into())), ..self }
    }

    /// The JSON body.
    pub(crate) fn body(&self) -> impl Serialize + '_ {
        ErrorBody {
            message: &self.message,
            detail: self.detail.as_deref(),
            validations: self.field.iter().map(|(field, detail)| Validation { field, detail }).collect(),
        }
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    validations: Vec<Validation<'a>>,
}

#[derive(Serialize)]
struct Validation<'a> {
    field: &'a str,
    detail: &'a str,
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Self::not_found(),
            // Whoever runs the server can do something about it, and that may be who asks.
            full if full.is_full() => {
                tracing::error!(cause = %full, "a request failed");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "The server's disk is full.")
            }
            other => Self::internal(&other),
        }
    }
}

impl From<HashError> for ApiError {
    fn from(error: HashError) -> Self {
        match error {
            HashError::Busy => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "Too many passwords wait to be checked: try again in a moment.")
            }
            other => Self::internal(&other),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json(self.status, &self.body());
        if let Some(url) = &self.realm {
            let challenge = format!(
                "Bearer realm=\"coder\", error=\"invalid_token\", error_description=\"The access token has expired\", \
                 resource_metadata=\"{}/.well-known/oauth-protected-resource\"",
                url.trim_end_matches('/')
            );
            if let Ok(value) = HeaderValue::from_str(&challenge) {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
            }
        }
        response
    }
}

/// What handlers return.
pub(crate) type Answer<T = Response> = Result<T, ApiError>;
